"""Makes our tables, upgrades them, and compares their version with the one expected here.

Alembic keeps that version in a table of our own, because ``alembic_version`` in the same database
is Optuna's.
"""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any, cast

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, Table, inspect, text

from mqasearch.database.insert import insert_if_absent
from mqasearch.database.read_only import for_reading
from mqasearch.database.tables import TaskRow, WorkerRow
from mqasearch.errors import StorageError

VERSION_TABLE = "mqasearch_alembic_version"

TASKS = cast(Table, TaskRow.__table__)

LOCK = 7_305_216_801
"""Number of PostgreSQL's advisory lock under which the schema is changed; any number that nobody
else uses."""


WITHOUT_QUEUE = ("0001", "0002", "0003")
"""Revisions before there was a queue: the masks to be scored were in Optuna's studies alone."""


def upgrade(engine: Engine, tasks: Sequence[Mapping[str, Any]] = ()) -> None:
    """Make our tables, or bring older ones to this version's schema. Nothing is lost.

    It is one transaction, in one process at a time: if it is interrupted, the database stays as it
    was. Revisions only ever add.

    Args:
        engine: the database's engine.
        tasks: rows that the queue begins with.
    """
    config = _config()
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK})
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        for row in tasks:
            insert_if_absent(connection, TASKS, [row])


def has_workers(engine: Engine) -> bool:
    """Whether the database has the table of workers."""
    return inspect(engine).has_table(WorkerRow.__tablename__)


def check(engine: Engine) -> None:
    """Make sure that the tables are what this version of mqasearch expects.

    Raises:
        StorageError: there are no tables, or they are of an older or a newer version.
    """
    found = current(engine)
    if found == head():
        return
    url = engine.url.render_as_string(hide_password=True)
    known = {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}
    if found is None:
        raise StorageError(f"{url} has no tables of mqasearch; make them: {cure(engine)}")
    if found in known:
        raise StorageError(f"{url} was made by an older mqasearch; bring it up: {cure(engine)}")
    raise StorageError(
        f"{url} was made by a newer mqasearch (its schema is {found!r}); "
        "update mqasearch here: pip install --upgrade mqasearch"
    )


def cure(engine: Engine) -> str:
    """The command that :func:`check` recommends."""
    return f"mqasearch db upgrade --storage {engine.url.render_as_string(hide_password=True)}"


def head() -> str:
    """The revision of this version of mqasearch."""
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    assert revision is not None
    return revision


def current(engine: Engine) -> str | None:
    """The revision of a database; None if it has no tables of ours."""
    with for_reading(engine).connect() as connection:
        return _context(connection).get_current_revision()


def _context(connection: Connection) -> MigrationContext:
    return MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})


def _config() -> Config:
    config = Config()
    config.set_main_option("path_separator", "os")
    config.set_main_option(
        "script_location", str(files("mqasearch.database") / "migrations").replace("%", "%%")
    )
    return config
