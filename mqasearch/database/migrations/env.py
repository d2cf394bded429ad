"""Alembic runs this file, with the connection that :mod:`mqasearch.database.schema` opened."""

from alembic import context
from sqlalchemy import Connection

from mqasearch.database.schema import VERSION_TABLE
from mqasearch.database.tables import PREFIX, Base


def is_ours(name: str | None, kind: str, _: object) -> bool:
    """Whether an object is ours: Optuna's tables in the same database are left alone."""
    return kind != "table" or (name is not None and name.startswith(PREFIX))


def run(connection: Connection) -> None:
    """Run the migrations in the caller's transaction.

    SQLite's DDL is transactional too, as Python's own handling of transactions is turned off.
    """
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        version_table=VERSION_TABLE,
        include_name=is_ours,
        render_as_batch=True,
        transactional_ddl=True,
    )
    with context.begin_transaction():
        context.run_migrations()


run(context.config.attributes["connection"])
