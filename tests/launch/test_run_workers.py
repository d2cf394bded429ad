"""``mqasearch run --workers N``, with real processes and a real PostgreSQL."""

import contextlib
import json
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import psutil
import pytest
from launching import Mqasearch, write_study

from mqasearch import launch
from mqasearch.cli.launch_commands import Database, database, work_together
from mqasearch.cli.options import DEFAULT_STORAGE
from mqasearch.export import read_mask
from mqasearch.launch import local
from mqasearch.launch.local import Child
from mqasearch.record import open_storage
from mqasearch.spec import parse_spec, read_yaml
from mqasearch.study import STATUS_HEADERS, study_rows

RUN = [sys.executable, "-m", "mqasearch", "run", "--workers", "2"]


@pytest.fixture
def place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with a study; pytest's own is closed to the user PostgreSQL runs as."""
    with tempfile.TemporaryDirectory(prefix="mqasearch-") as name:
        Path(name).chmod(0o755)
        monkeypatch.chdir(name)
        write_study(Path(name) / "study.yaml", model="fake:8:0.3")
        yield Path(name)


class Run:
    """A run in a process of its own, and what it started."""

    def __init__(self, *words: str) -> None:
        self.process = subprocess.Popen(
            [*RUN, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.lines: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self.process:
            self.process.kill()

    def wait_for(self, words: str) -> None:
        """Until they are logged."""
        assert self.process.stderr is not None
        while True:
            self.lines.append(self.process.stderr.readline())
            assert self.lines[-1], self.lines
            if words in self.lines[-1]:
                return

    def wait_for_workers(self) -> list[psutil.Process]:
        deadline = time.monotonic() + 120
        while not (workers := self.workers()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return workers

    def started(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def workers(self) -> list[psutil.Process]:
        return [process for process in self.started() if "child" in words_of(process)]

    def end(self) -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        out, err = self.process.communicate(timeout=240)
        return self.process.returncode, out, "".join(self.lines) + err


def words_of(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.NoSuchProcess):  # zombies too
        return process.cmdline()
    return []


def wait_until_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, 40)
    assert not alive


def test_whatever_ends_a_run_its_workers_end_with_it_and_nothing_is_lost(
    place: Path, mqasearch: Mqasearch
) -> None:
    """Stopped, killed, finished: three runs of one study in one folder."""
    with Run("study.yaml") as run:
        run.wait_for_workers()[0].kill()
        run.wait_for("ended by signal 9; it is started again")
        assert len(run.workers()) >= 1
        started = run.started()
        assert any("postgres" in process.name() for process in started)
        run.process.send_signal(signal.SIGTERM)
        code, _, err = run.end()
    assert code == 143
    assert "Traceback" not in err
    wait_until_gone(started)

    with Run("study.yaml") as run:
        run.wait_for(" trial ")
        run.wait_for(" trial ")
        started = run.started()
        run.process.kill()
        run.end()
    wait_until_gone(started)

    with Run("study.yaml") as run:
        code, out, err = run.end()
    assert code == 0, err
    assert "masks: masks.json" in out
    assert "mqasearch db serve" in out
    document = json.loads((place / "masks.json").read_text())
    found = {mask["study"]["selector"]: mask for mask in document["masks"]}

    assert mqasearch("run study.yaml --output-dir alone")[0] == 0
    alone = read_mask(place / "alone" / "masks.json", selector="greedy")
    assert found["greedy"]["mqa_layers"] == alone["mqa_layers"]
    assert found["greedy"]["scores"] == alone["scores"]
    # interrupted trials were given back by their own workers: nobody waited for a grace period
    rows = statuses()
    assert [row["running"] + row["waiting"] for row in rows] == [0, 0]
    assert sum(row["failed"] for row in rows) <= 4


def test_a_model_is_run_by_several_workers_as_by_one(place: Path, mqasearch: Mqasearch) -> None:
    few = "fake:8:0.1 --budget 3 --documents 20 --confirmation 40 --output-dir"
    with Run(*few.split(), "out") as run:
        code, out, err = run.end()
    assert code == 0, err
    assert "study file: out/study.yaml" in out
    assert len(re.findall(r"\[worker [01]\] \d+ trials done", out + err)) == 2
    with Run("fake:8:0.1", "--output-dir", "out") as run:
        code, again, err = run.end()
    assert (code, again) == (0, out), err
    assert " trial " not in err

    assert mqasearch(f"run {few} alone")[0] == 0
    alone, together = (
        parse_spec(read_yaml(place / at / "study.yaml"), at) for at in ("alone", "out")
    )
    assert alone == together
    for selector in ("sensitivity", "greedy"):  # gp learns from what happens to have ended
        one, two = (read_mask(place / at / "masks.json", selector) for at in ("alone", "out"))
        assert one["mqa_layers"] == two["mqa_layers"]
        assert one["scores"] == two["scores"]


def statuses() -> list[dict[str, Any]]:
    """From the database that the run left."""
    with subprocess.Popen(
        [sys.executable, "-m", "mqasearch", "db", "serve"], stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        command, url = server.stdout.readline().strip().split(" --storage ")
        assert command == "mqasearch dashboard"
        with contextlib.closing(open_storage(shlex.split(url)[0], read_only=True)) as storage:
            rows = list(study_rows(storage.optuna))
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 130
    return [dict(zip(STATUS_HEADERS, row, strict=True)) for row in rows]


def test_a_study_goes_on_in_the_file_that_holds_it(place: Path, mqasearch: Mqasearch) -> None:
    assert mqasearch("create study.yaml")[0] == 0
    with database(None, "demo", 2) as found:
        assert found == Database(DEFAULT_STORAGE)
    with database("postgresql://h/d", "demo", 2) as found:
        assert found == Database("postgresql://h/d")
    with database(None, "another", 1) as found:
        assert found == Database(DEFAULT_STORAGE)
    assert not (place / "mqasearch.pg").exists()


def test_a_worker_gets_its_device_its_threads_and_no_url_on_its_command_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    children: list[Child] = []
    monkeypatch.setattr(launch, "run_children", children.extend)
    monkeypatch.setattr(local, "gpus", lambda: 2)
    monkeypatch.setattr(launch, "threads_for", lambda n: 12 // n)
    monkeypatch.delenv("OMP_NUM_THREADS")
    work_together(Database("postgresql://u:canary@h/d", (7,)), "demo", "auto", 3)
    assert [child.label for child in children] == [f"worker {n} cuda:{n % 2}" for n in range(3)]
    for n, child in enumerate(children):
        assert f"--device=cuda:{n % 2}" in child.command
        assert "canary" not in " ".join(child.command)
        assert child.environment["OPTUNA_STORAGE"] == "postgresql://u:canary@h/d"
        assert child.environment["OMP_NUM_THREADS"] == "4"
        assert child.held == (7,)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    work_together(Database("postgresql://h/d"), "demo", "cpu", 1)
    assert children[-1].environment["OMP_NUM_THREADS"] == "1"  # whoever set it knows why


def test_without_its_extra_several_workers_are_told_what_to_do(
    place: Path, mqasearch: Mqasearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mqasearch.launch.postgres", None)
    code, _, err = mqasearch("run study.yaml --workers 2")
    assert code == 2
    assert "pip install 'mqasearch[postgres]'" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("workers", ["0", "-1", "two"])
def test_a_number_of_workers_that_is_none(mqasearch: Mqasearch, workers: str) -> None:
    assert mqasearch(f"run study.yaml --workers={workers}")[0] == 2
