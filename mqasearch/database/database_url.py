"""Storage URLs as people write them, as SQLAlchemy needs them, and without their secrets."""

from pathlib import Path

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from mqasearch.errors import StorageError, UnknownNameError

DRIVERS = {
    "sqlite": "sqlite",
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
}
"""Database in a URL without a driver → the name with our driver. SQLAlchemy would choose drivers
that we do not depend on for some of them."""

EXAMPLES = "sqlite:///study.db or postgresql://user:password@host/database"

UNREADABLE = (
    f"the storage URL does not parse; write {EXAMPLES}, and in the password %40 for @, %2F for / "
    "and %3A for :"
)

SECRETS = ("password", "passfile", "sslpassword")
"""Secret parameters of libpq that a URL may have after the question mark."""


def parse(text: str) -> URL:
    """A storage URL with its driver.

    Raises:
        StorageError: the text does not parse. The error does not repeat it: it may hold a password.
        UnknownNameError: the database is neither SQLite nor PostgreSQL.
    """
    if "://" not in text:
        raise StorageError(
            f"the storage is not a URL; for a file write sqlite:///{text}"
            if text and "@" not in text
            else f"the storage is not a URL such as {EXAMPLES}"
        )
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise StorageError(UNREADABLE) from None
    database = url.drivername.partition("+")[0]
    if database not in DRIVERS:
        raise UnknownNameError("database", database, DRIVERS, f"write {EXAMPLES}")
    if database != "sqlite" and "@" in f"{url.host}{url.database}":
        raise StorageError(UNREADABLE)  # a part of the password was taken for something else
    if "+" not in url.drivername or url.drivername.startswith("postgres+"):
        url = url.set(drivername=DRIVERS[database])
    return url


def hidden(url: URL) -> str:
    """The URL without its secrets."""
    shown = url.difference_update_query([name for name in SECRETS if name in url.query])
    return shown.render_as_string(hide_password=True)


def for_optuna(url: URL) -> str:
    """The URL as Optuna takes it, with its password.

    It contains no brace, which Optuna would take for a field of a template: SQLAlchemy encodes
    braces.
    """
    return url.render_as_string(hide_password=False)


def sqlite_file(url: URL) -> Path | None:
    """The file of an SQLite URL; None for other databases and for SQLite's own ``file:`` URIs.

    Raises:
        StorageError: it is an SQLite database in memory, which workers cannot share.
    """
    if url.get_backend_name() != "sqlite":
        return None
    name = url.database or ""
    if name in ("", ":memory:"):
        raise StorageError(
            "an SQLite database in memory cannot be shared; write sqlite:///study.db"
        )
    return None if name.startswith("file:") else Path(name)
