"""A whole run with a password in the database's URL, after which it is looked for everywhere."""

import contextlib
import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import psycopg
import pytest
from command_line import run_here
from launching import write_study
from postgres import Postgres

from mqasearch import record
from mqasearch.cli.launch_commands import Database
from mqasearch.launch import Child, Fleet
from mqasearch.record import Storage, open_storage

PASSWORD = "canary-5e1f/@:%"
"""With all that a URL has to encode: both spellings must not appear."""

WRONG = "wrong-canary-77"
SIGNS = ("canary", quote(PASSWORD, safe=""))
PYTHON = [sys.executable, "-m", "mqasearch"]

Command = Callable[[str], tuple[int, str]]
"""A command line → exit code, and all that was said and logged."""

pytestmark = pytest.mark.xdist_group("password")


class Login:
    """A user who owns a database and must give a password, as the server is told to insist."""

    def __init__(self, server: Postgres) -> None:
        self.server, self.name = server, f"secretive_{os.getpid()}"
        secret = PASSWORD.replace("'", "''")
        server.execute(f"CREATE ROLE {self.name} LOGIN PASSWORD '{secret}'")
        server.execute(f"CREATE DATABASE {self.name} OWNER {self.name}")
        ((rules,),) = server.execute("SHOW hba_file")
        self.rules = Path(str(rules))
        self._before = self.rules.read_text()
        self.rules.write_text(f"host all {self.name} 127.0.0.1/32 scram-sha-256\n{self._before}")
        self.server.execute("SELECT pg_reload_conf()")
        deadline = time.monotonic() + 60
        while self.lets_in(WRONG):  # until it has read them
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert self.lets_in(PASSWORD)

    def lets_in(self, password: str) -> bool:
        try:
            psycopg.connect(self.url(password), connect_timeout=10).close()
        except psycopg.OperationalError as error:
            if "password authentication failed" not in str(error):
                raise
            return False
        return True

    def url(self, password: str = PASSWORD) -> str:
        address = self.server.address(self.name, self.name)
        return address.replace("@", f":{quote(password, safe='')}@", 1)

    def forget(self) -> None:
        self.rules.write_text(self._before)
        self.server.execute("SELECT pg_reload_conf()")
        self.server.execute(f"DROP DATABASE {self.name} WITH (FORCE)")
        self.server.execute(f"DROP ROLE {self.name}")

    def rows(self) -> list[str]:
        """Every row of every table, as text."""
        tables = self.server.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'public'", self.name
        )
        assert len(tables) > 10
        return [
            str(row)
            for (table,) in tables
            for row in self.server.execute(f"SELECT * FROM {table}", self.name)
        ]


@pytest.fixture(scope="module")
def login(postgres_server: Postgres) -> Iterator[Login]:
    made = Login(postgres_server)
    yield made
    made.forget()


def check(*texts: str | bytes) -> None:
    for text in texts:
        if isinstance(text, bytes):
            text = text.decode(errors="replace")
        for sign in SIGNS:
            at = text.find(sign)
            assert at < 0, text[max(0, at - 200) : at + 60]


def test_what_would_be_a_leak() -> None:
    for text in (f"x {PASSWORD}", quote(PASSWORD, safe=""), WRONG.encode(), json.dumps(PASSWORD)):
        with pytest.raises(AssertionError):
            check(text)


class Watch:
    """Notes the command lines of whatever a process has below it.

    A process that is being started has its parent's for a moment.
    """

    def __init__(self, process: int) -> None:
        self.titles: set[str] = set()
        self._process = psutil.Process(process)
        self._own = "\0".join(self._process.cmdline())
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self.titles.discard(self._own)

    def _look(self) -> None:
        while not self._over.wait(0.1):
            with contextlib.suppress(psutil.Error):
                for process in self._process.children(recursive=True):
                    with contextlib.suppress(psutil.Error):
                        self.titles.add("\0".join(process.cmdline()))


def start(line: str, place: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*PYTHON, *shlex.split(line)],
        cwd=place,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@dataclass(frozen=True)
class Ran:
    """A run of several workers that has ended."""

    place: Path
    out: str
    err: str
    titles: set[str]

    def files(self) -> list[bytes]:
        """All that is in its folder."""
        return [path.read_bytes() for path in self.place.rglob("*") if path.is_file()]


@pytest.fixture(scope="module")
def ran(login: Login, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """Everything is logged; the password is on the run's own command line only."""
    place = tmp_path_factory.mktemp("run")
    write_study(place / "study.yaml", model="fake:8:0.05")
    line = f"--verbose --log-format json run study.yaml --workers 2 --storage {login.url()}"
    with start(line, place) as run, Watch(run.pid) as watch:
        out, err = run.communicate(timeout=240)
    assert run.returncode == 0, err
    return Ran(place, out, err, watch.titles)


def test_a_run_of_several_workers(ran: Ran, login: Login) -> None:
    said = [json.loads(line) for line in ran.err.splitlines()]
    assert {"worker 0", "worker 1"} <= {row.get("worker") for row in said}
    assert "another worker: mqasearch worker --storage" in ran.out
    assert any("--log-format=json\0child" in title for title in ran.titles)
    assert (ran.place / "masks.json").is_file()
    check(ran.out, ran.err, *ran.titles, *ran.files(), *login.rows())


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    ran: Ran,
) -> Command:
    """Runs a command line in this process."""
    monkeypatch.chdir(ran.place)
    caplog.set_level(logging.DEBUG)
    opened: list[Storage] = []

    def noted(*args: Any, **options: Any) -> Storage:
        opened.append(open_storage(*args, **options))
        return opened[-1]

    monkeypatch.setattr(record, "open_storage", noted)

    def run(line: str) -> tuple[int, str]:
        code = run_here(line, monkeypatch)
        while opened:  # a command ends with its process, which closes them
            opened.pop().close()
        return code, "\n".join([*capfd.readouterr(), caplog.text])

    return run


def test_a_worker_that_is_stopped(command: Command, login: Login, ran: Ran) -> None:
    write_study(ran.place / "slow.yaml", name="slow", model="fake:8:0.4")
    assert command(f"create slow.yaml --storage {login.url()}")[0] == 0
    line = "--verbose worker --study-name slow"
    with start(line, ran.place, OPTUNA_STORAGE=login.url()) as worker:
        assert worker.stderr is not None
        lines = []
        while " trial " not in (line := worker.stderr.readline()):
            assert line, lines
            lines.append(line)
        check("\0".join(psutil.Process(worker.pid).cmdline()))
        worker.send_signal(signal.SIGTERM)
        out, err = worker.communicate(timeout=60)
    assert worker.returncode == 143
    check(out, err, *lines, *login.rows())


@pytest.mark.parametrize(
    "line",
    [
        "create study.yaml",
        "worker --study-name demo",
        "status",
        "status -f json",
        "compare --study-name demo",
        "compare --study-name demo -f json",
        "export --study-name demo -o exported.json",
        "launch --engine slurm --study-name demo --workers 2 --output-dir launched",
        "launch --engine kubernetes --image x --study-name demo --workers 2 --output-dir launched",
        "launch --engine kubernetes --image x --study-name demo --workers 2 --dry-run",
        "db upgrade",
    ],
)
def test_commands(command: Command, login: Login, ran: Ran, line: str) -> None:
    code, said = command(f"--verbose {line} --storage {login.url()}")
    assert code == 0, said
    check(said, *ran.files())


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("worker --study-name demo --storage {wrong}", "password authentication failed"),
        ("status --storage {wrong}", "password authentication failed"),
        ("create study.yaml --storage {wrong}", "password authentication failed"),
        ("dashboard --port 0 --storage {wrong}", "password authentication failed"),
        ("launch --engine ray --study-name demo --workers 1 --storage {wrong}", "authentication"),
        ("run study.yaml --workers 2 --storage {wrong}", "password authentication failed"),
        ("compare --study-name dmeo --storage {url}", "did you mean 'demo'"),
        ("status --storage {url}/", "does not exist"),
        ("status --storage {closed}", "refused"),
        ("status --storage nonsense+{url}", "unknown database"),
        ("status --storage {url}@x", "does not parse"),
        ("status {url}", "***"),
        ("{url}", "***"),
        ("run {url}", "***"),
        ("worker --study-name {url} --storage {url}", "***"),
        ("status --format {url}", "***"),
        ("--log-format {url} status", "***"),
    ],
)
def test_errors(command: Command, login: Login, line: str, words: str) -> None:
    port = f":{login.server.port}/"
    given = line.format(
        url=login.url(), wrong=login.url(WRONG), closed=login.url().replace(port, ":1/")
    )
    code, said = command(given)
    assert code == (75 if words == "refused" else 2), said
    assert words in said
    check(said)


def test_help_shows_no_default_from_the_environment(
    command: Command, login: Login, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPTUNA_STORAGE", login.url())
    for name in ("run", "worker", "dashboard"):
        code, said = command(f"{name} --help")
        assert code == 0
        assert "OPTUNA_STORAGE" in said
        check(said)


PAGES = (
    "/",
    "/dashboard",
    "/mqasearch/",
    "/mqasearch/comparisons/demo",
    "/mqasearch/nothing",
    "/api/meta",
    "/api/studies",
    "/api/studies/1",
    "/api/studies/999",
)


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=60) as reply:
            return reply.status, f"{reply.headers}{reply.read().decode()}"
    except urllib.error.HTTPError as error:
        with error:
            return error.code, f"{error.headers}{error.read().decode()}"


def test_the_dashboard(login: Login, ran: Ran) -> None:
    environment = {"OPTUNA_STORAGE": login.url()}
    with start("--verbose dashboard --port 0", ran.place, **environment) as server:
        assert server.stderr is not None
        said = ""
        while "dashboard of " not in said:
            said += server.stderr.readline()
        url = said.split()[-1].rstrip("/")
        replies = {page: get(url + page) for page in PAGES}
        server.send_signal(signal.SIGINT)
        out, err = server.communicate(timeout=60)
    assert replies["/mqasearch/comparisons/demo"][0] == replies["/api/studies/1"][0] == 200
    assert "demo" in replies["/api/studies"][1]
    check(out, said, err, *(text for _, text in replies.values()))


def test_the_database_and_the_servers_log(ran: Ran, login: Login) -> None:
    """Of whatever ran here until now."""
    check(*login.rows(), (login.rules.parents[1] / "log").read_bytes())


def test_representations(login: Login) -> None:
    """What a debugger, or a careless log line, would show."""
    child = Child("worker 0", ["mqasearch"], {"OPTUNA_STORAGE": login.url()})
    database = Database(login.url())
    with contextlib.closing(open_storage(login.url(), create=False)) as opened:
        check(repr(opened), repr(opened.engine), repr(opened.engine.url))
    check(repr(child), repr(database), repr(Fleet("demo", 1)))
