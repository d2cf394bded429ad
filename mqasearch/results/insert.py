"""Insert rows unless their key is there: the one statement that SQL dialects spell differently."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Insert, Table, insert
from sqlalchemy.dialects import postgresql, sqlite


def insert_if_absent(
    connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]
) -> int:
    """Insert ``rows``, leaving alone those whose unique key is there already.

    Returns:
        How many were inserted.
    """
    statement = _statement(connection, table).values(list(rows))
    return connection.execute(statement.execution_options(preserve_rowcount=True)).rowcount


def _statement(connection: Connection, table: Table) -> Insert:
    match connection.dialect.name:
        case "sqlite":
            return sqlite.insert(table).on_conflict_do_nothing()
        case "postgresql":
            return postgresql.insert(table).on_conflict_do_nothing()
        case _:
            return insert(table).prefix_with("IGNORE")
