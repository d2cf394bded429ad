"""Transactions that only read.

On SQLite, our engine takes the write lock when a transaction begins (see
:mod:`mqasearch.database.connecting`). A transaction that only reads need not wait for that lock; an
execution option of SQLAlchemy marks it. On PostgreSQL the option changes nothing.
"""

from typing import Any

from sqlalchemy import Connection, Engine

_OPTION = "mqasearch_reads_only"


def reads_only(yes: bool = True) -> dict[str, Any]:
    """SQLAlchemy's execution options of an engine: its transactions only read, or may write."""
    return {_OPTION: yes}


def for_reading(engine: Engine) -> Engine:
    """The same engine, with the same connections, for transactions that only read.

    Example:
        >>> from sqlalchemy import create_engine, text
        >>> engine = create_engine("sqlite://")
        >>> with for_reading(engine).connect() as connection:
        ...     connection.execute(text("SELECT 1")).scalar()
        1
    """
    return engine.execution_options(**reads_only())


def is_for_reading(connection: Connection) -> bool:
    """Whether the transaction that begins on a connection only reads."""
    return bool(connection.get_execution_options().get(_OPTION, False))
