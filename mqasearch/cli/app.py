"""The root command: what is common to all, and how it ends."""

import logging
import signal
import sys
from types import FrameType
from typing import NoReturn

import click
import typer

from mqasearch import __version__
from mqasearch.cli import listing, serving, study
from mqasearch.errors import MqasearchError, UserError

app = typer.Typer(
    name="mqasearch",
    help="Find which attention layers of a pretrained transformer can become multi-query "
    "attention, under a budget, without retraining.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
study.register(app)
serving.register(app)
listing.register(app)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
    verbose: bool = typer.Option(False, "-v", "--verbose", help="Log more, to stderr."),
) -> None:
    """Root options."""
    if version:
        print(f"mqasearch {__version__}")
        raise typer.Exit
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    logging.getLogger("mqasearch").setLevel(logging.INFO)


class Terminated(SystemExit):
    """SIGTERM: the trial in hand is given back, then the process ends with 143."""


def _terminate(signum: int, _: FrameType | None) -> NoReturn:
    signal.signal(signum, signal.SIG_DFL)  # a second signal ends it now
    raise Terminated(128 + signum)


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 failed, 2 bad input, 128 + n on signal n."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        code = app(standalone_mode=False)
    except click.exceptions.Abort:
        code = 130
    except KeyboardInterrupt:
        code = 130
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except UserError as error:
        print(f"mqasearch: {error}", file=sys.stderr)
        code = 2
    except MqasearchError as error:
        print(f"mqasearch: {error}", file=sys.stderr)
        code = 1
    sys.exit(code or 0)
