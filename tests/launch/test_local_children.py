"""Children of one machine: kept alive, told once, gone when their parent is gone."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from mqasearch import launch
from mqasearch.cli.launch_commands import Database, work_together
from mqasearch.errors import MqasearchError, TransientError, UserError
from mqasearch.forward import SHARERS_VARIABLE
from mqasearch.launch import local
from mqasearch.launch.local import Child, devices_for, run_children, threads_for


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(local, "PAUSE_SECONDS", 0.01)


def child(code: str, label: str = "worker 0", held: Sequence[int] = ()) -> Child:
    return Child(label, [sys.executable, "-S", "-c", code], dict(os.environ), held)


def ends(*codes: int, counter: Path) -> str:
    """A program that ends with one code after the other, the last one for good."""
    return (
        f"import os, pathlib, signal, sys\npath = pathlib.Path({str(counter)!r})\n"
        "n = len(path.read_text()) if path.exists() else 0\n"
        "path.write_text('x' * (n + 1))\n"
        f"code = {codes}[min(n, {len(codes) - 1})]\n"
        "os.kill(os.getpid(), -code) if code < 0 else sys.exit(code)\n"
    )


def starts(counter: Path) -> int:
    return len(counter.read_text())


def test_a_child_that_dies_is_started_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    counter = tmp_path / "n"
    run_children([child(ends(-9, 1, 0, counter=counter))])
    assert starts(counter) == 3
    assert "worker 0 ended by signal 9; it is started again" in caplog.text
    assert "worker 0 ended with exit code 1" in caplog.text


def test_a_child_that_keeps_dying_is_given_up_and_the_others_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad, good = tmp_path / "bad", tmp_path / "good"
    run_children(
        [child(ends(1, counter=bad), "worker 0"), child(ends(0, counter=good), "worker 1")]
    )
    assert (starts(bad), starts(good)) == (1 + local.RESTARTS, 1)
    assert "worker 0 ended with exit code 1 and is given up" in caplog.text
    with pytest.raises(MqasearchError, match="every worker ended") as raised:
        run_children([child(ends(1, counter=bad))])
    assert not isinstance(raised.value, UserError)


def test_deaths_far_apart_are_not_counted_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "STEADY_SECONDS", 0.0)
    counter = tmp_path / "n"
    run_children([child(ends(*[1] * (local.RESTARTS + 2), 0, counter=counter))])
    assert starts(counter) == local.RESTARTS + 3


def test_an_outage_is_met_with_another_start(tmp_path: Path) -> None:
    passing, lasting = tmp_path / "passing", tmp_path / "lasting"
    run_children([child(ends(75, 0, counter=passing))])
    assert starts(passing) == 2
    with pytest.raises(TransientError) as raised:
        run_children([child(ends(75, counter=lasting))])
    assert starts(lasting) == 1 + local.RESTARTS
    assert raised.value.exit_code == 75


@pytest.mark.parametrize("code", [2, 143, -15, 130])
def test_a_refusal_and_a_stop_are_final(tmp_path: Path, code: int) -> None:
    counter = tmp_path / "n"
    with pytest.raises(MqasearchError) as raised:
        run_children([child(ends(code, counter=counter))])
    assert starts(counter) == 1
    assert isinstance(raised.value, UserError) is (code == 2)


def test_output_is_passed_on_line_by_line_with_the_childs_name(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = "import sys; print('out'); print('err \\udcff', file=sys.stderr)"
    run_children([child(code, "worker 7")])
    out, err = capsys.readouterr()
    assert out == ""
    assert sorted(err.splitlines())[1] == "[worker 7] out"
    assert "[worker 7] err" in err


STOPPING = """
import pathlib, signal, sys, time
path = pathlib.Path({path!r})
def stop(number, frame):
    with path.open("a") as file: print(number, file=file)
    time.sleep({seconds})
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
path.write_text("ready\\n")
time.sleep(60)
"""


def wait_for(condition: object, seconds: float = 30.0) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, condition
        time.sleep(0.02)


def interrupt_when_ready(paths: Sequence[Path]) -> None:
    wait_for(lambda: all(path.exists() and path.read_text() for path in paths))
    signal.raise_signal(signal.SIGINT)  # to the main thread, as Ctrl-C


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Whoever started the tests in the background may have SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("slow", [0.1, 60])
def test_an_interrupt_is_passed_on_once_and_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: float
) -> None:
    if slow > 1:
        monkeypatch.setattr(local, "STOP_SECONDS", 0.5)
    paths = [tmp_path / "a", tmp_path / "b"]
    children = [child(STOPPING.format(path=str(path), seconds=slow)) for path in paths]

    interrupt = threading.Thread(target=interrupt_when_ready, args=(paths,))
    interrupt.start()
    with pytest.raises(KeyboardInterrupt):
        run_children(children)
    interrupt.join()
    assert [path.read_text() for path in paths] == ["ready\n15\n"] * 2
    assert all(child.process is None for child in children)


PARENT = """
import subprocess, sys, time
child = subprocess.Popen(
    [sys.executable, "-c", sys.argv[1]], stdin=subprocess.PIPE, start_new_session=True
)
print(child.pid, flush=True)
time.sleep(60)
"""
TIED = """
import os, sys
from mqasearch.launch import lifeline
if {portable}:
    sys.platform = "a system whose kernel does not tell"
lifeline.end_with(os.getppid(), grace={grace})
"""


@pytest.mark.parametrize("portable", [False, True], ids=["kernel", "pipe"])
@pytest.mark.parametrize("slow", [0.2, 60], ids=["polite", "stubborn"])
def test_a_child_of_a_killed_parent_is_told_once_then_killed(
    tmp_path: Path, portable: bool, slow: float
) -> None:
    notes = tmp_path / "notes"
    code = STOPPING.format(path=str(notes), seconds=slow)
    tied = TIED.format(portable=portable, grace=1.0 if slow > 1 else 30.0)
    # the handlers first, as the command line does it
    code = code.replace("path.write_text", f"{tied}\npath.write_text")
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, code], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        tied_child = psutil.Process(int(parent.stdout.readline()))
        wait_for(lambda: notes.exists() and notes.read_text() == "ready\n")
        parent.kill()
    wait_for(lambda: not tied_child.is_running() or tied_child.status() == "zombie", 15)
    assert notes.read_text() == "ready\n15\n"


def test_a_child_whose_parent_died_before_it_could_ask_ends_too(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    code = STOPPING.format(path=str(notes), seconds=0)
    tied = TIED.format(portable=False, grace=30.0).replace("os.getppid()", "1 + os.getpid()")
    code = code.replace("path.write_text", f"{tied}\npath.write_text")
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as process:
        wait_for(notes.exists)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(15) == 143


@pytest.mark.parametrize(
    ("device", "there", "expected"),
    [
        ("auto", 2, ["cuda:0", "cuda:1", "cuda:0"]),
        ("auto", 0, ["auto"] * 3),
        ("cpu", 2, ["cpu"] * 3),
        ("cuda:1", 2, ["cuda:1"] * 3),
    ],
)
def test_devices(
    monkeypatch: pytest.MonkeyPatch, device: str, there: int, expected: list[str]
) -> None:
    monkeypatch.setattr(local, "gpus", lambda: there)
    assert devices_for(device, 3) == expected


def test_threads_are_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.platform == "linux":
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(9)))
    monkeypatch.setattr(os, "cpu_count", lambda: 9)
    assert [threads_for(n) for n in (1, 2, 4, 9, 20)] == [9, 4, 2, 1, 1]


def test_a_held_descriptor_stays_open_in_the_child() -> None:
    theirs, held = os.pipe()
    run_children([child(f"import os; os.write({held}, b'here')", held=(held,))])
    os.close(held)
    assert os.read(theirs, 10) == b"here"
    assert os.read(theirs, 10) == b""  # and nobody holds it any more
    os.close(theirs)


def test_signals_are_the_ones_that_the_command_line_ends_with() -> None:
    assert set(local.STOPPED) == {
        sign * (offset + number)
        for number in (signal.SIGINT, signal.SIGTERM)
        for sign, offset in ((1, 128), (-1, 0))
    }


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_workers_are_told_how_many_share_their_memory(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Child] = []
    monkeypatch.delenv(SHARERS_VARIABLE, raising=False)
    monkeypatch.setattr(local, "gpus", lambda: 0)
    monkeypatch.setattr(launch, "run_children", started.extend)
    work_together(Database("sqlite://"), "demo", device, 3)
    assert [child.environment[SHARERS_VARIABLE] for child in started] == ["3"] * 3
