"""``--log-format json``: one JSON object a line on stderr, whoever writes there."""

import io
import json
import logging
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from mqasearch.cli.logs import JsonFormatter, JsonLines, TextFormatter, without_passwords

START = (
    "import logging, sys, warnings\n"
    "from mqasearch.cli.logs import start_logging\n"
    "from mqasearch.cli.options import LogFormat\n"
    "start_logging(LogFormat(sys.argv[1]), verbose=False)\n"
    "log = logging.getLogger('mqasearch.x')\n"
)
URL = "postgresql+psycopg://me:canary@h:5/d"


def rows(text: str) -> list[dict[str, Any]]:
    """Every line, as the object it must be."""
    return [json.loads(line) for line in text.splitlines()]


def stderr_of(code: str, log_format: str = "json") -> str:
    done = subprocess.run(
        [sys.executable, "-c", START + code, log_format], capture_output=True, text=True
    )
    assert done.stdout == ""
    return done.stderr


def record(message: str, *args: object, **extra: object) -> logging.LogRecord:
    logger = logging.getLogger("mqasearch.x")
    return logger.makeRecord(logger.name, logging.INFO, "", 0, message, args, None, extra=extra)


def formatted(message: str, *args: object, **extra: object) -> dict[str, Any]:
    line = JsonFormatter().format(record(message, *args, **extra))
    assert line.isascii()  # whatever the locale says, it can be written
    (row,) = rows(line)
    return row


def test_a_record_is_one_object() -> None:
    row = formatted("%s: layer %d →\n%.1f", "demo", 3, 0.5)
    moment = datetime.fromisoformat(row.pop("time"))
    assert moment.utcoffset() == timedelta()
    assert abs(moment - datetime.now(UTC)) < timedelta(seconds=10)
    assert row == {"level": "INFO", "logger": "mqasearch.x", "message": "demo: layer 3 →\n0.5"}


def test_the_time_is_utc_wherever_the_process_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        moment = record("x")
        moment.created = 0.25
        assert json.loads(JsonFormatter().format(moment))["time"] == "1970-01-01T00:00:00.250Z"
    finally:
        monkeypatch.undo()
        time.tzset()


def test_extra_is_kept_and_hides_nothing() -> None:
    row = formatted(
        "m",
        study="demo.greedy",
        trial=4,
        level="mine",
        value=float("nan"),
        where=Path("x"),
        masks=[{"a": (1, None, True)}],
        url=URL,
        _private=1,
    )
    assert "_private" not in row
    assert (row["study"], row["trial"], row["level"]) == ("demo.greedy", 4, "INFO")
    assert (row["value"], row["where"]) == ("nan", "x")
    assert row["masks"] == [{"a": [1, None, True]}]
    assert "canary" not in str(row)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"at {URL}?x=1: no", "at postgresql+psycopg://me:***@h:5/d?x=1: no"),
        ("postgres://me:can@ry@h/d", "postgres://me:***@h/d"),
        ("postgresql:/me:canary@h/d", "postgresql:/me:***@h/d"),
        ("'postgresql://:canary@h/d', 'a@b'", "'postgresql://:***@h/d', 'a@b'"),
        ("postgresql://me@h/d", "postgresql://me@h/d"),
        ("http://127.0.0.1:8080/ by a@b", "http://127.0.0.1:8080/ by a@b"),
        ("sqlite:///mqasearch.db", "sqlite:///mqasearch.db"),
    ],
)
def test_a_password_is_hidden_wherever_it_comes_from(text: str, shown: str) -> None:
    assert without_passwords(text) == shown
    assert TextFormatter("%(message)s").format(record(text)) == shown
    assert formatted(text)["message"] == shown


@pytest.fixture
def lines() -> JsonLines:
    return JsonLines(io.StringIO(), JsonFormatter())


def written(lines: JsonLines) -> list[dict[str, Any]]:
    assert isinstance(lines.stream, io.StringIO)
    return rows(lines.stream.getvalue())


def test_what_others_write_becomes_json(lines: JsonLines) -> None:
    print("a bar", 5, file=lines)
    lines.write("half a line, ")
    assert len(written(lines)) == 1
    lines.write(f"then {URL}\n\n  \nwithout an end")
    lines.flush()
    lines.flush()
    assert [row["message"] for row in written(lines)] == [
        "a bar 5",
        "half a line, then postgresql+psycopg://me:***@h:5/d",
        "without an end",
    ]
    assert {(row["logger"], row["level"]) for row in written(lines)} == {("stderr", "INFO")}
    assert not lines.isatty()


def test_workers_lines_say_whose_they_are(lines: JsonLines) -> None:
    line = JsonFormatter().format(record("trial", trial=3))
    print(line, file=lines)
    print(f"[worker 0 cuda:1] {line}", file=lines)
    print(f"\x1b[36m(demo worker 1 pid=77, ip=10.0.0.2)\x1b[0m {line}", file=lines)
    print("[worker 0 cpu] 4 trials done", file=lines)
    print("[1] {not json}", file=lines)
    plain, mine, rays, words, odd = written(lines)
    assert "worker" not in plain
    assert mine == plain | {"worker": "worker 0 cuda:1"}
    assert rays == plain | {"worker": "demo worker 1 pid=77, ip=10.0.0.2"}
    assert words["message"] == "[worker 0 cpu] 4 trials done"
    assert odd["message"] == "[1] {not json}"


def test_bytes_are_refused_as_text_streams_do(lines: JsonLines) -> None:
    with pytest.raises(TypeError):  # click asks, to find out what kind of stream this is
        lines.write(b"")  # type: ignore[arg-type]


@pytest.mark.processes
def test_warnings_threads_and_unexpected_errors_are_json_too() -> None:
    code = (
        "log.warning('first', extra={'study': 'demo'})\n"
        "import threading\n"
        "warnings.warn('second')\n"
        "def fail(): raise ValueError('third')\n"
        "thread = threading.Thread(target=fail); thread.start(); thread.join()\n"
        f"raise RuntimeError('{URL}')\n"
    )
    first, second, third, last = rows(stderr_of(code))
    assert (first["message"], first["study"]) == ("first", "demo")
    assert second["logger"] == "py.warnings"
    assert "second" in second["message"]
    assert "ValueError: third" in third["exception"]
    assert last["level"] == "CRITICAL"
    assert "Traceback" in last["exception"]
    assert "RuntimeError: postgresql+psycopg://me:***@h:5/d" in last["exception"]


@pytest.mark.processes
def test_text_is_as_before() -> None:
    said = stderr_of("log.warning('no %s', 'JSON'); print('as it is', file=sys.stderr)", "text")
    line, other = said.splitlines()
    assert line.endswith("WARNING mqasearch.x: no JSON")
    assert other == "as it is"


def mqasearch(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mqasearch", *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


@pytest.mark.processes
def test_an_error_is_an_object(tmp_path: Path) -> None:
    done = mqasearch("--log-format", "json", "run", "nothing.yaml", cwd=tmp_path)
    assert done.returncode == 2
    (row,) = rows(done.stderr)
    assert (row["level"], row["logger"]) == ("ERROR", "mqasearch")
    assert "nothing.yaml" in row["message"]
    assert not row["message"].startswith("mqasearch:")


@pytest.mark.processes
def test_a_format_that_is_none_is_refused(tmp_path: Path) -> None:
    done = mqasearch("--log-format", "xml", "selectors", cwd=tmp_path)
    assert done.returncode == 2
    assert "json" in done.stderr


@pytest.mark.processes
def test_help_is_quick(tmp_path: Path) -> None:
    seconds = []
    for _ in range(3):  # the machine may be busy just then
        started = time.perf_counter()
        assert mqasearch("--help", cwd=tmp_path).returncode == 0
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 1


CHILDREN = """
import sys
from mqasearch.cli.launch_commands import Database, work_together
from mqasearch.cli.logs import start_logging
from mqasearch.cli.options import LogFormat
from mqasearch import launch

children = []
launch.run_children = children.extend
start_logging(LogFormat({log_format!r}), verbose={verbose})
work_together(Database("postgresql://h/d"), "demo", "cpu", 1)
print(*children[0].command, sep="\\n")
"""


@pytest.mark.processes
@pytest.mark.parametrize(
    ("log_format", "verbose", "options"),
    [("text", False, []), ("json", True, ["--verbose", "--log-format=json"])],
)
def test_children_log_as_the_run_does(log_format: str, verbose: bool, options: list[str]) -> None:
    code = CHILDREN.format(log_format=log_format, verbose=verbose)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    command = done.stdout.splitlines()
    assert command[3 : command.index("child")] == options


INTERRUPTED = (
    "from sqlalchemy import create_engine, event\n"
    "engine = create_engine('sqlite://')\n"
    "def interrupt(*_):\n"
    "    raise {kind}('a signal, or a fault')\n"
    "event.listen(engine, 'reset', interrupt)\n"
    "try:\n"
    "    engine.connect().close()\n"
    "except KeyboardInterrupt:\n"
    "    log.warning('it went on')\n"
)
"""SQLAlchemy logs whatever comes while it takes a connection back."""


@pytest.mark.processes
@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_signal_while_a_connection_is_given_back_leaves_no_traceback(log_format: str) -> None:
    err = stderr_of(INTERRUPTED.format(kind="KeyboardInterrupt"), log_format)
    assert "it went on" in err
    assert len(err.splitlines()) == 1, err
    assert "Traceback" in stderr_of(INTERRUPTED.format(kind="RuntimeError"), log_format)
