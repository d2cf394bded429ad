"""Insert rows unless their key exists; this statement differs between SQL dialects."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Insert, Table
from sqlalchemy.dialects import postgresql, sqlite


def insert_if_absent(
    connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]
) -> int:
    """Insert ``rows``, except those whose unique key exists already.

    Args:
        connection: a connection that is in a transaction.
        table: the table to insert into.
        rows: column → value. A value may be an SQL expression only if there is one row.

    Returns:
        The number of rows that were inserted.
    """
    statement = _statement(connection, table).execution_options(preserve_rowcount=True)
    # Not ``values(rows)``: SQLAlchemy would compile the statement anew each time.
    if len(rows) == 1:
        return connection.execute(statement.values(dict(rows[0]))).rowcount
    return connection.execute(statement, [dict(row) for row in rows]).rowcount


def _statement(connection: Connection, table: Table) -> Insert:
    if connection.dialect.name == "sqlite":
        return sqlite.insert(table).on_conflict_do_nothing()
    return postgresql.insert(table).on_conflict_do_nothing()
