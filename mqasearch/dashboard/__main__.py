"""``python -m mqasearch.dashboard NAME``: print a line for an auth file.

The secret is asked for; an empty answer has one made. It is shown once, on stderr, so that stdout
may be appended to the file.
"""

import argparse
import getpass
import secrets
import sys

from mqasearch.dashboard.auth import make_line
from mqasearch.errors import UserError


def main() -> int:
    """Ask for a secret and print the account's line."""
    parser = argparse.ArgumentParser(
        prog="python -m mqasearch.dashboard",
        description="Print a line for the file that `mqasearch dashboard --auth-file` reads.",
    )
    parser.add_argument("name", help="of the account: letters, digits, _ and -")
    name = parser.parse_args().name
    given = getpass.getpass("secret (empty: make one): ") if sys.stdin.isatty() else input()
    secret = given or secrets.token_urlsafe(24)
    try:
        line = make_line(name, secret)
    except UserError as error:
        print(f"mqasearch: {error}", file=sys.stderr)
        return 2
    if not given:
        print(f"user {name}, password {secret}\nbearer token {name}.{secret}", file=sys.stderr)
    print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
