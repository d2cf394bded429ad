"""Run by Alembic, with the connection that :mod:`mqasearch.database.schema` opened."""

from alembic import context
from sqlalchemy import Connection

from mqasearch.database.schema import VERSION_TABLE
from mqasearch.database.tables import PREFIX, Base


def is_ours(name: str | None, kind: str, _: object) -> bool:
    """Optuna's tables, in the same database, are none of our business."""
    return kind != "table" or (name is not None and name.startswith(PREFIX))


def run(connection: Connection) -> None:
    """Within the caller's transaction; SQLite's DDL is transactional once Python is kept out."""
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
