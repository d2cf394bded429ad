"""The PostgreSQL of a folder: one run at a time, no port, gone with its last holder."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from mqasearch.errors import StorageError
from mqasearch.launch import keeper, postgres
from mqasearch.launch.postgres import embedded_postgres


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder with a database in it; pytest's own is closed to the user PostgreSQL runs as."""
    with tempfile.TemporaryDirectory(prefix="mqasearch-") as name:
        Path(name).chmod(0o755)
        yield Path(name) / "mqasearch.pg"


def connect(url: str) -> psycopg.Connection:
    return psycopg.connect(url, connect_timeout=5)


def servers(folder: Path) -> list[psutil.Process]:
    """The keeper and the server of a folder, by what they have in common."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if str(folder / "data") in (process.info["cmdline"] or ())
    ]


def wait_until_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, 30)
    assert not alive


def test_it_is_up_for_the_block_and_keeps_its_data(place: Path) -> None:
    for turn in range(2):
        with embedded_postgres(place, n_workers=2) as embedded:
            with connect(embedded.url) as connection:
                connection.execute("CREATE TABLE IF NOT EXISTS kept (turn INTEGER)")
                connection.execute("INSERT INTO kept VALUES (%s)", [turn])
                rows = connection.execute("SELECT turn FROM kept").fetchall()
            assert rows == [(n,) for n in range(turn + 1)]
            running = servers(place)
            assert len(running) == 2
        wait_until_gone(running)
        with pytest.raises(psycopg.OperationalError):
            connect(embedded.url)


def test_nobody_else_reaches_it(place: Path) -> None:
    with embedded_postgres(place, n_workers=2):
        for process in servers(place):
            assert not process.net_connections("inet")
        assert (place / "socket").stat().st_mode & 0o077 == 0
        assert (place / "data").stat().st_mode & 0o077 == 0


def test_a_second_run_in_the_folder_is_refused_with_what_to_do(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "WAIT_SECONDS", 0.5)
    with embedded_postgres(place, n_workers=2) as first:
        with (
            pytest.raises(StorageError, match=r"in use by another run.*mqasearch worker") as raised,
            embedded_postgres(place, n_workers=2),
        ):
            pass
        assert "\n" not in str(raised.value)
        connect(first.url).close()  # the first does not notice


def test_whoever_holds_it_keeps_it_up(place: Path) -> None:
    """As a worker of a killed run does, until it has given its trial back."""
    with embedded_postgres(place, n_workers=2) as embedded:
        running = servers(place)
        worker = subprocess.Popen(
            [sys.executable, "-S", "-c", "import sys; sys.stdin.read()"],
            stdin=subprocess.PIPE,
            pass_fds=[embedded.held],
        )
        # the run dies: its end of the pipe is closed, whatever else it had to do is not done
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, embedded.held)
        os.close(null)
        time.sleep(2 * keeper.LOOK_SECONDS)
        connect(embedded.url).close()
        worker.communicate(timeout=10)
        wait_until_gone(running)


def test_a_killed_server_is_started_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = "from mqasearch.launch import keeper; keeper.STEADY_SECONDS = 0; keeper.main()"
    start = subprocess.Popen

    def quick(words: list[str], **settings: object) -> "subprocess.Popen[bytes]":
        if "-m" in words:
            words = [words[0], "-c", program, *words[3:]]
        return start(words, **settings)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(subprocess, "Popen", quick)
    with embedded_postgres(place, n_workers=2) as embedded:
        (server,) = [p for p in servers(place) if p.cmdline()[0].endswith("postgres")]
        backends = server.children()
        for process in (server, *backends):
            process.send_signal(signal.SIGKILL)
        deadline = time.monotonic() + 30
        while True:
            try:
                connect(embedded.url).close()
            except psycopg.OperationalError:
                assert time.monotonic() < deadline
                time.sleep(0.1)
            else:
                break


def test_a_folder_that_cannot_be_a_database(place: Path, tmp_path: Path) -> None:
    file = place.parent / "file"
    file.touch()
    foreign = place.parent / "foreign"
    (foreign / "data").mkdir(parents=True)
    for folder in (file, foreign):
        with (
            pytest.raises(StorageError, match=str(folder)) as raised,
            embedded_postgres(folder, n_workers=2),
        ):
            pass
        assert "\n" not in str(raised.value)


def test_a_long_path_has_its_socket_elsewhere(place: Path) -> None:
    deep = place.parent / ("long-name-" * 9) / "mqasearch.pg"
    deep.parent.mkdir()
    place.rename(deep)
    with embedded_postgres(deep, n_workers=2) as embedded:
        connect(embedded.url).close()
        assert str(deep) not in embedded.url
        sockets = [Path(part) for part in embedded.url.split("=") if part.startswith("/")]
    assert not any(path.exists() for path in sockets)
    deep.rename(place)


def test_as_root_it_opens_no_folder_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    monkeypatch.setattr(postgres.PostgresServer, "__init__", _as_root)
    with (
        pytest.raises(StorageError, match=r"may not enter .*--storage sqlite"),
        embedded_postgres(closed / "mqasearch.pg", n_workers=2),
    ):
        pass
    assert closed.stat().st_mode & 0o777 == 0o700


def _as_root(server: postgres.PostgresServer, folder: Path) -> None:
    server.system_user = "nobody"
    server.bin_path = Path("/usr/bin")
