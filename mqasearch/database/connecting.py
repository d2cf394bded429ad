"""How connections are made, for Optuna's tables and for ours.

Optuna makes its engine itself and uses it at once. So an SQLAlchemy plugin does what is needed on
each connection: it runs whenever an engine that names it is created.
"""

from functools import partial
from sqlite3 import Connection as SqliteConnection
from typing import Any

import psycopg
from psycopg.abc import RV, PQGen
from psycopg.pq import TransactionStatus
from sqlalchemy import URL, Connection, CreateEnginePlugin, Engine, event
from sqlalchemy.dialects import plugins
from sqlalchemy.engine.interfaces import DBAPIConnection, ExceptionContext
from sqlalchemy.pool import ConnectionPoolEntry

from mqasearch.database.patience import Patience
from mqasearch.database.read_only import is_for_reading

PLUGIN = "mqasearch"

CONNECT_SECONDS = 5
"""How long one host may take to accept a connection."""

STATEMENT_SECONDS = 60
"""How long a statement may take before the server cancels it; ours take milliseconds."""

ANSWER_SECONDS = STATEMENT_SECONDS + 30
"""How long a connection may be silent before it is given up, even if something between here and the
server keeps it open."""

SQLITE_BUSY_SECONDS = 60

ISOLATION = "READ COMMITTED"
"""The isolation level, instead of the server's default: a transaction that has waited for a lock
must see what was written meanwhile."""

_HANDED_ON = "in the middle of a query"

POOL = {"pool_size": 2, "max_overflow": 1, "pool_recycle": 1800, "pool_pre_ping": True}
"""A worker uses one connection, a second one to record trials, and at times a third one for a
heartbeat. So 32 workers fit PostgreSQL's default of 100 connections, even if all of them use all
three at once."""


def engine_settings(url: URL) -> dict[str, Any]:
    """Keyword arguments of ``sqlalchemy.create_engine`` for a database."""
    connect: dict[str, Any] = {}
    settings: dict[str, Any] = {"connect_args": connect, "plugins": [PLUGIN]}
    if url.get_backend_name() == "sqlite":
        connect["timeout"] = SQLITE_BUSY_SECONDS
    else:
        connect |= _postgresql_settings(url)
        settings["isolation_level"] = ISOLATION
    return POOL | settings


def _postgresql_settings(url: URL) -> dict[str, Any]:
    """Settings of libpq, without those that the URL gives itself."""
    ours = {
        "connect_timeout": CONNECT_SECONDS,
        "application_name": "mqasearch",
        "keepalives_idle": 30,
        "keepalives_interval": 10,
        "keepalives_count": 3,
        "tcp_user_timeout": 60_000,  # milliseconds
        "options": (
            f"-c statement_timeout={STATEMENT_SECONDS}s -c lock_timeout={STATEMENT_SECONDS // 2}s "
            f"-c idle_in_transaction_session_timeout={STATEMENT_SECONDS}s"
        ),
    }
    return {name: value for name, value in ours.items() if name not in url.query}


class PatientConnection(psycopg.Connection[Any]):
    """A connection that does not wait for ever.

    libpq notices a peer that is gone, but not one that is connected and silent, such as a proxy
    whose server has vanished, or a paused virtual machine behind a load balancer.
    """

    def wait(self, gen: PQGen[RV], interval: float = 0.1, timeout: float | None = None) -> RV:
        """Psycopg's own wait, with a limit."""
        try:
            return super().wait(gen, interval, ANSWER_SECONDS if timeout is None else timeout)
        except psycopg.OperationalError:
            if self.pgconn.transaction_status == TransactionStatus.ACTIVE:
                self.pgconn.finish()  # a late answer would be taken for that of the next query
            raise


class EnginePlugin(CreateEnginePlugin):
    """Attaches our event listeners to a new engine."""

    def update_url(self, url: URL) -> URL:
        """Return the URL unchanged: it holds no parameters of this plugin."""
        return url

    def engine_created(self, engine: Engine) -> None:
        """Called by SQLAlchemy before the engine's first connection."""
        event.listen(engine, "handle_error", _hand_on_interrupt)
        if engine.dialect.name == "sqlite":
            event.listen(engine, "connect", _prepare_sqlite)
            event.listen(engine, "begin", _begin_sqlite)
        if engine.dialect.name == "postgresql" and engine.dialect.driver == "psycopg":
            event.listen(engine, "do_connect", _connect_patiently)


plugins.register(PLUGIN, __name__, EnginePlugin.__name__)


def _prepare_sqlite(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
    """Set SQLite's modes.

    WAL lets readers and one writer work at once. NORMAL may lose the last transactions if the
    machine (not the process) dies, but never the database.
    """
    assert isinstance(connection, SqliteConnection)
    connection.isolation_level = None  # else Python would begin transactions itself, and late
    # Turning WAL on in a new file needs exclusive access, and SQLite does not wait for that.
    Patience(SQLITE_BUSY_SECONDS)(partial(connection.execute, "PRAGMA journal_mode=WAL"))
    connection.execute("PRAGMA synchronous=NORMAL")


def _begin_sqlite(connection: Connection) -> None:
    """Begin with the write lock, unless the transaction only reads.

    Otherwise a transaction that reads and then writes would fail at once, instead of waiting, if
    another one has written in between.
    """
    connection.exec_driver_sql("BEGIN" if is_for_reading(connection) else "BEGIN IMMEDIATE")


def _connect_patiently(
    _dialect: object, _record: object, arguments: list[Any], settings: dict[str, Any]
) -> DBAPIConnection:
    connection: Any = PatientConnection.connect(*arguments, **settings)
    return connection  # type: ignore[no-any-return]


def _hand_on_interrupt(context: ExceptionContext) -> None:
    """Raise the KeyboardInterrupt that came in the middle of a query.

    While the interrupt passes through the driver, the driver may fail (psycopg: "can't change
    'autocommit' now"), and SQLAlchemy would report that failure alone. The interrupt is raised for
    the first failure only: later ones come from the cleaning up after it.
    """
    error: BaseException | None = context.original_exception
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    if error is not None and _HANDED_ON not in getattr(error, "__notes__", ()):
        error.add_note(_HANDED_ON)
        raise error
