"""Who may see the dashboard when it can be reached from other machines.

An auth file holds one line an account, ``#`` begins a comment::

    NAME:scrypt:N:R:P:SALT:HASH

``N``, ``R`` and ``P`` are scrypt's cost, block size and parallelism (RFC 7914), ``SALT`` and
``HASH`` base64url without padding; no character of it means anything to a shell, to YAML or to
docker compose. The same secret opens the dashboard by basic auth (``NAME`` and the secret; what a
browser asks for) and as a bearer token (``NAME.SECRET``; for programs). ``python -m
mqasearch.dashboard NAME`` prints a line.
"""

import base64
import binascii
import hashlib
import hmac
import re
import secrets
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mqasearch.errors import UserError

COST, BLOCK, PARALLEL = 2**14, 8, 1
"""16 MiB and some 40 ms a guess."""

MIN_SECRET = 12
"""Characters. The file may be copied and guessed at in peace."""

MAX_FILE_BYTES = 100_000
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class Account:
    """One line of an auth file: scrypt's parameters, the salt and the hash."""

    cost: int
    block: int
    parallel: int
    salt: bytes
    digest: bytes

    def matches(self, secret: str) -> bool:
        """Whether the secret is the account's; takes the same time either way."""
        return hmac.compare_digest(self._hash(secret), self.digest)

    def _hash(self, secret: str) -> bytes:
        return _scrypt(secret, self.salt, self.cost, self.block, self.parallel, len(self.digest))


class Accounts:
    """The accounts of an auth file, and which ``Authorization`` headers they accept.

    scrypt is slow on purpose and a page asks for many files, so the headers that were accepted are
    remembered (as hashes under a key of this process); those that were not cost the full time, one
    after the other.
    """

    def __init__(self, accounts: Mapping[str, Account]) -> None:
        self._accounts = dict(accounts)
        self._key = secrets.token_bytes(32)
        self._accepted: dict[bytes, str] = {}
        self._lock = threading.Lock()
        self._nobody = _parse_fields(make_line("nobody", secrets.token_urlsafe(32)).split(":")[1:])

    def __len__(self) -> int:
        return len(self._accounts)

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
        # an unknown name costs as much as a wrong secret, so that names cannot be found out
        account = self._accounts.get(name, self._nobody)
        with self._lock:
            matches = account.matches(secret)
        if not matches or account is self._nobody:
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
    accounts: dict[str, Account] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, *fields = line.strip().split(":")
        try:
            accounts[_checked_name(name)] = _parse_fields(fields)
        except ValueError as error:
            raise UserError(
                f"auth file {path}, line {number}: {error}; "
                "make a line with: python -m mqasearch.dashboard NAME"
            ) from None
    if not accounts:
        raise UserError(
            f"auth file {path}: no account in it; make one with: python -m mqasearch.dashboard NAME"
        )
    return Accounts(accounts)


def make_line(name: str, secret: str) -> str:
    """A line of an auth file, with a fresh salt.

    Raises:
        UserError: the name is not made of letters, digits, ``_`` and ``-``, or the secret is short.
    """
    try:
        _checked_name(name)
    except ValueError as error:
        raise UserError(str(error)) from None
    if len(secret) < MIN_SECRET:
        raise UserError(f"the secret has {len(secret)} characters; use at least {MIN_SECRET}")
    salt = secrets.token_bytes(16)
    digest = _scrypt(secret, salt, COST, BLOCK, PARALLEL, 32)
    return f"{name}:scrypt:{COST}:{BLOCK}:{PARALLEL}:{_encode(salt)}:{_encode(digest)}"


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"account name {name!r} is not 1 to 64 of A-Z, a-z, 0-9, _ and -")
    return name


def _parse_fields(fields: list[str]) -> Account:
    """``scrypt, N, R, P, SALT, HASH`` as an account; limits keep an odd file from stalling us."""
    if len(fields) != 6 or fields[0] != "scrypt":
        raise ValueError("not NAME:scrypt:N:R:P:SALT:HASH")
    try:
        cost, block, parallel = (int(field) for field in fields[1:4])
        salt, digest = _decode(fields[4]), _decode(fields[5])
    except (ValueError, binascii.Error):
        raise ValueError("not NAME:scrypt:N:R:P:SALT:HASH") from None
    if not 2**10 <= cost <= 2**17 or cost & (cost - 1) or not 1 <= block <= 16:
        raise ValueError("N is not a power of two from 1024 to 131072, or R not 1 to 16")
    if not 1 <= parallel <= 4 or len(salt) < 8 or len(digest) < 16:
        raise ValueError("P is not 1 to 4, or salt or hash is too short")
    return Account(cost, block, parallel, salt, digest)


def _credentials(header: str) -> tuple[str, str]:
    """Name and secret of a header; empty where there is none."""
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


def _scrypt(secret: str, salt: bytes, cost: int, block: int, parallel: int, length: int) -> bytes:
    return hashlib.scrypt(
        secret.encode("utf-8", "surrogatepass"),
        salt=salt,
        n=cost,
        r=block,
        p=parallel,
        maxmem=256 * cost * block * parallel + 2**20,
        dklen=length,
    )


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
