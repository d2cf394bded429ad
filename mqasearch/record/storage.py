"""Opens the database: Optuna's tables and ours together."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import optuna
from optuna.exceptions import StorageInternalError
from sqlalchemy import URL, Engine, create_engine, exc, text
from sqlalchemy.pool import NullPool

from mqasearch.database import (
    ClaimRow,
    Patience,
    TaskRow,
    engine_settings,
    for_optuna,
    for_reading,
    hidden,
    is_away,
    one_line,
    parse,
    schema,
    sqlite_file,
)
from mqasearch.errors import DatabaseAwayError, ReadOnlyError, StorageError
from mqasearch.queue import GRACE_SECONDS, list_workers
from mqasearch.record.old_trials import end_old_trials, task_rows
from mqasearch.record.optuna_storage import SharedStorage, opened

LOCK = 7_305_216_802
"""Number of PostgreSQL's advisory lock under which one process makes the tables."""


OPENING_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Storage:
    """An open database.

    Attributes:
        optuna: the storage for ``optuna.load_study`` and similar calls.
        engine: the engine for our own tables; it shares its connections with ``optuna``.
        patience: for all other operations on the database.
        url_hidden: the URL without its secrets.
        grace: seconds of silence after which a worker's task and claims are given to others.
    """

    optuna: SharedStorage
    engine: Engine
    patience: Patience
    url_hidden: str
    grace: int

    def close(self) -> None:
        """Close this storage's connections; those of other storages stay open."""
        self.optuna.close()


def open_storage(
    url: str,
    *,
    create: bool = True,
    read_only: bool = False,
    patience: Patience | None = None,
    grace: int = GRACE_SECONDS,
) -> Storage:
    """Open a database for studies, or report within seconds why that is impossible.

    Opening does not wait for a database that is away. Only later operations do, because work may
    be lost then.

    Args:
        url: ``sqlite:///FILE`` or ``postgresql://…``.
        create: whether to make the tables, and SQLite's file, if there are none.
        read_only: whether the caller only reads; then the database need not be writable.
        patience: how long operations wait for a database that is away, once it has answered.
        grace: seconds of silence after which a worker's task and claims are given to others.

    Raises:
        StorageError: the URL does not parse, or the database refuses, is read-only, or has another
            schema. The message is one line without a password.
        DatabaseAwayError: the database does not answer; the message is one line likewise.
    """
    parsed = parse(url)
    shown = hidden(parsed)
    create = create and not read_only
    _check_file(parsed, shown, create)
    with _faults_of(parsed, shown):
        first = _first_engine(parsed)
        _check_access(first, shown, read_only)
        patience = patience or Patience()
        connect = partial(_shared_storage, parsed, patience)
        if create and schema.current(first) is None:
            _make_tables(first, connect)
        schema.check(first)
        if not read_only:
            _check_rights(first, shown)
        shared = connect()
    return Storage(shared, shared.engine, patience, shown, grace)


def upgrade_storage(url: str) -> None:
    """Bring the tables of an older mqasearch and an older Optuna up to the installed versions.

    Raises:
        StorageError, DatabaseAwayError: as in ``open_storage``.
    """
    parsed = parse(url)
    shown = hidden(parsed)
    _check_file(parsed, shown, create=True)
    with _faults_of(parsed, shown):
        first = _first_engine(parsed)
        _check_access(first, shown, read_only=False)
        with _one_at_a_time(first):
            shared = opened(for_optuna(parsed), engine_settings(parsed), Patience(), upgrade=True)
            before = schema.current(first)
            if before in schema.WITHOUT_QUEUE:
                _check_nobody_works(first, shown)
            rows = task_rows(shared) if before in schema.WITHOUT_QUEUE else []
            schema.upgrade(first, rows)  # last, as in _make_tables
            end_old_trials(shared)
            shared.close()


def _check_nobody_works(engine: Engine, shown: str) -> None:
    """Refuse the upgrade while workers are alive: those of an older version would ignore the queue.

    Raises:
        StorageError: workers are alive.
    """
    if not schema.has_workers(engine):
        return
    alive = [worker for worker in list_workers(engine) if worker.alive]
    if alive:
        raise StorageError(
            f"{shown}: {len(alive)} worker(s) of an older mqasearch are at work in it "
            f"({', '.join(f'process {one.pid} on {one.host}' for one in alive)}); stop them, "
            "which loses nothing, wait a minute, and upgrade then"
        )


def _make_tables(engine: Engine, connect: Callable[..., SharedStorage]) -> None:
    """Make Optuna's tables and ours, unless another process has made them meanwhile.

    Ours are made last: a process that sees them, without a lock, may rely on all others.
    """
    with _one_at_a_time(engine):
        if schema.current(engine) is None:
            shared = connect(make_tables=True)
            shared.close()
            schema.upgrade(engine)


def _shared_storage(url: URL, patience: Patience, *, make_tables: bool = False) -> SharedStorage:
    connect = partial(
        opened, for_optuna(url), engine_settings(url), patience, make_tables=make_tables
    )
    try:
        # If two processes open a new SQLite file at once, one of them may fail; it tries again.
        return Patience(OPENING_SECONDS)(connect)
    except RuntimeError as error:  # Optuna raises it for tables of another Optuna
        raise StorageError(
            f"{hidden(url)} was made by another Optuna than {optuna.__version__}; bring it up: "
            f"mqasearch db upgrade --storage {hidden(url)}"
        ) from error


def _first_engine(url: URL) -> Engine:
    """An engine for the first queries, which check the database; it keeps no connection open."""
    settings = engine_settings(url)
    return create_engine(
        url,
        poolclass=NullPool,
        plugins=settings["plugins"],
        connect_args=settings["connect_args"],
    )


def _check_file(url: URL, shown: str, create: bool) -> None:
    path = sqlite_file(url)
    if path is None or path.exists():
        return
    if not path.absolute().parent.is_dir():
        raise StorageError(f"{shown}: there is no folder {path.parent}; make it first")
    if not create:
        raise StorageError(
            f"{shown}: there is no such file; make a study in it with "
            f"`mqasearch create STUDY.yaml --storage {shown}`"
        )


def _check_access(engine: Engine, shown: str, read_only: bool) -> None:
    """Connect for the first time, and check that writing is allowed, unless ``read_only``."""
    with (for_reading(engine) if read_only else engine).connect() as connection:
        if read_only:
            connection.execute(text("SELECT 1"))
            return
        if connection.dialect.name == "sqlite":
            version = connection.execute(text("PRAGMA user_version")).scalar_one()
            connection.execute(text(f"PRAGMA user_version = {version}"))  # undone after the block
        if connection.dialect.name == "postgresql":
            setting = connection.execute(text("SHOW transaction_read_only")).scalar_one()
            if setting == "on":
                raise ReadOnlyError(
                    f"{shown} is read-only (a standby server, or set so); use the primary server"
                )


def _check_rights(engine: Engine, shown: str) -> None:
    if engine.dialect.name != "postgresql":
        return
    needed = (ClaimRow, TaskRow)
    rights = [f"has_table_privilege('{table.__tablename__}', 'INSERT')" for table in needed]
    with engine.connect() as connection:
        if not connection.execute(text(f"SELECT {' AND '.join(rights)}")).scalar_one():
            raise ReadOnlyError(
                f"{shown}: the user {engine.url.username!r} may only read, or less than this "
                "version needs; use one with the rights of a worker (dashboards/roles.sql, to be "
                "run after each upgrade)"
            )


@contextmanager
def _one_at_a_time(engine: Engine) -> Iterator[None]:
    """Let only one process at a time make or change tables; SQLite's write lock suffices there."""
    if engine.dialect.name != "postgresql":
        yield
        return
    with engine.connect() as connection:
        connection.execute(text("SET idle_in_transaction_session_timeout = 0"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK})
        yield


@contextmanager
def _faults_of(url: URL, shown: str) -> Iterator[None]:
    """Turn errors of drivers and databases into ours, with one line that says what to do."""
    try:
        yield
    except StorageError:
        raise
    except (ImportError, exc.NoSuchModuleError):
        driver = url.drivername.partition("+")[2] or url.drivername
        raise StorageError(
            f"{shown} needs the database driver {driver!r}; install it: pip install {driver}"
        ) from None
    except (exc.SQLAlchemyError, StorageInternalError) as error:
        said = one_line(error)
        if is_away(error):
            raise DatabaseAwayError(f"{shown}: {said}; {_advice(url, said)}") from error
        kind = ReadOnlyError if _says_read_only(said) else StorageError
        raise kind(f"{shown}: {said}; {_advice(url, said)}") from error


def _says_read_only(said: str) -> bool:
    return "readonly" in said or "read-only" in said


def _advice(url: URL, said: str) -> str:
    if _says_read_only(said):
        return "make it writable, or give another --storage"
    if "permission denied" in said:
        return "ask the owner for the rights in dashboards/roles.sql"
    if sqlite_file(url) is not None:
        return "give another --storage if this is not an SQLite database you may write"
    return "see that the server runs, and that host, port, database, user and password are right"
