"""Who may see the dashboard when it can be reached from other machines.

An auth file is what Apache calls an htpasswd file, with bcrypt hashes: each line is ``NAME:HASH``,
and ``#`` begins a comment. ``python -m mqasearch.dashboard NAME`` prints a line, and so does
Apache's ``htpasswd -nB NAME``. The same secret opens the dashboard by basic auth (``NAME`` and the
secret; what a browser asks for) and as a bearer token (``NAME.SECRET``; for programs).
"""

import base64
import binascii
import hmac
import re
import secrets
import threading
from collections.abc import Mapping
from pathlib import Path

import bcrypt

from mqasearch.errors import UserError

ROUNDS = 12
"""log₂ of bcrypt's rounds: a guess takes a quarter of a second."""

MIN_SECRET, MAX_SECRET_BYTES = 12, 72
"""Fewest characters, since a copied file can be attacked offline; most bytes that bcrypt reads."""

MAX_FILE_BYTES = 100_000
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_HASH = re.compile(r"\$2[aby]\$[0-9]{2}\$(?P<salt>[./A-Za-z0-9]{22})[./A-Za-z0-9]{31}")
_LEAST_ROUNDS, _MOST_ROUNDS = 4, 15
"""The fewest that bcrypt takes, and the most that we take: two seconds a guess."""


class Accounts:
    """The accounts of an auth file, and which ``Authorization`` headers they accept.

    bcrypt is slow on purpose and a page asks for many files, so accepted headers are remembered (as
    hashes under a key of this process). Other headers cost the full time and are checked one after
    the other.
    """

    def __init__(self, hashes: Mapping[str, str]) -> None:
        """``hashes``: name of each account → hash of its secret."""
        self._hashes = dict(hashes)
        self._key = secrets.token_bytes(32)
        self._accepted: dict[bytes, str] = {}
        self._lock = threading.Lock()
        rounds = max(map(_rounds_of, hashes.values()), default=ROUNDS)
        self._nobody = bcrypt.hashpw(secrets.token_bytes(32), bcrypt.gensalt(rounds)).decode()

    def __len__(self) -> int:
        return len(self._hashes)

    def who(self, header: str) -> str | None:
        """The account that an ``Authorization`` header proves, or None.

        Args:
            header: ``Basic …`` or ``Bearer NAME.SECRET``.
        """
        remembered = hmac.digest(self._key, header.encode("utf-8", "replace"), "sha256")
        if remembered in self._accepted:
            return self._accepted[remembered]
        name, secret = _credentials(header)
        if not name:
            return None
        # An unknown name takes as long as a wrong secret, so that names cannot be found out (if all
        # hashes have the same cost).
        with self._lock:
            matches = _matches(secret, self._hashes.get(name, self._nobody))
        if not matches or name not in self._hashes:
            return None
        self._accepted[remembered] = name
        return name


def load_accounts(path: Path) -> Accounts:
    """Read an auth file.

    Raises:
        UserError: it cannot be read, holds no account, or a line is malformed.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UserError(f"auth file {path}: larger than {MAX_FILE_BYTES:,} bytes, not one")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise UserError(f"auth file {path}: cannot be read: {reason}") from None
    hashes: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, _, hashed = line.strip().partition(":")
        try:
            hashes[_checked_name(name)] = _checked_hash(hashed)
        except ValueError as error:
            raise UserError(
                f"auth file {path}, line {number}: {error}; "
                "make a line with: python -m mqasearch.dashboard NAME"
            ) from None
    if not hashes:
        raise UserError(
            f"auth file {path}: no account in it; make one with: python -m mqasearch.dashboard NAME"
        )
    return Accounts(hashes)


def make_line(name: str, secret: str) -> str:
    """A line of an auth file, with a fresh salt.

    Raises:
        UserError: the name is not made of letters, digits, ``_`` and ``-``, or the secret is too
            short or too long.
    """
    try:
        _checked_name(name)
    except ValueError as error:
        raise UserError(str(error)) from None
    if len(secret) < MIN_SECRET:
        raise UserError(f"the secret has {len(secret)} characters; use at least {MIN_SECRET}")
    if len(secret.encode()) > MAX_SECRET_BYTES:
        raise UserError(f"the secret is too long; use at most {MAX_SECRET_BYTES} characters")
    return f"{name}:{bcrypt.hashpw(secret.encode(), bcrypt.gensalt(ROUNDS)).decode()}"


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"account name {name!r} is not 1 to 64 of A-Z, a-z, 0-9, _ and -")
    return name


def _checked_hash(text: str) -> str:
    """Check early that bcrypt takes the hash; the limit keeps an odd file from stalling us."""
    found = _HASH.fullmatch(text)
    if found is None:
        raise ValueError("not NAME:$2b$… as bcrypt makes it")
    if not _LEAST_ROUNDS <= _rounds_of(text) <= _MOST_ROUNDS:
        raise ValueError(f"bcrypt's cost is not {_LEAST_ROUNDS} to {_MOST_ROUNDS}")
    quick = f"$2b${_LEAST_ROUNDS:02d}${found['salt']}"
    try:
        bcrypt.hashpw(b"", quick.encode())
    except ValueError:
        raise ValueError("bcrypt refuses the salt") from None
    return text


def _rounds_of(hashed: str) -> int:
    """log₂ of bcrypt's rounds."""
    return int(hashed.split("$")[2])


def _matches(secret: str, hashed: str) -> bool:
    """Whether the secret is the one that was hashed."""
    given = secret.encode("utf-8", "surrogatepass")
    # bcrypt refuses a longer secret, so it is cut here and takes as long as any other.
    found = bcrypt.checkpw(given[:MAX_SECRET_BYTES], hashed.encode())
    return found and len(given) <= MAX_SECRET_BYTES


def _credentials(header: str) -> tuple[str, str]:
    """Name and secret of a header; empty if there is none."""
    scheme, _, rest = header.strip().partition(" ")
    if scheme.lower() == "bearer":
        name, _, secret = rest.strip().partition(".")
        return name, secret
    if scheme.lower() == "basic":
        try:
            name, _, secret = base64.b64decode(rest, validate=True).decode().partition(":")
        except (ValueError, binascii.Error):
            return "", ""
        return name, secret
    return "", ""
