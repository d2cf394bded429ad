"""Workers on a real, local Ray."""

import contextlib
import json
import logging
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
import ray
from launching import STUDY, Mqasearch
from processes import below

from mqasearch.errors import DatabaseAwayError, TransientError, UserError
from mqasearch.launch import ray_tasks
from mqasearch.launch.fleet import Fleet
from mqasearch.launch.ray_tasks import resources, run_on_ray
from mqasearch.record import ModelFacts, agree_on_model, open_storage
from mqasearch.spec import parse_spec
from mqasearch.study import STATUS_HEADERS, study_rows
from mqasearch.worker import create

pytestmark = pytest.mark.xdist_group("ray")  # one cluster, not one in each of pytest's processes


@pytest.fixture(scope="module")
def cluster() -> Iterator[Path]:
    """Two cores on loopback; the folder of its logs."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short: it holds sockets
    before = below()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=80 * 2**20,
        logging_level="ERROR",
        _temp_dir=str(folder),
    )
    for number, handler in handlers.items():
        signal.signal(number, handler)
    yield folder
    started = below() - before
    ray.shutdown()
    _, left = psutil.wait_procs(started, 30)
    shutil.rmtree(folder, ignore_errors=True)
    assert not left


def rows_of(url: str) -> list[dict[str, Any]]:
    with contextlib.closing(open_storage(url, read_only=True)) as storage:
        return [dict(zip(STATUS_HEADERS, row, strict=True)) for row in study_rows(storage.optuna)]


@contextlib.contextmanager
def noting_titles() -> Iterator[set[str]]:
    """The command lines of all processes that this one has below it meanwhile."""
    titles: set[str] = set()
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.5):
            for process in below():
                with contextlib.suppress(psutil.NoSuchProcess):
                    titles.add(" ".join(process.cmdline()))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield titles
    finally:
        over.set()
        looking.join()


@pytest.fixture
def _stderr_as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Afterwards: JSON is for the length of a process, and this one goes on."""
    for place, name in ((sys, "stderr"), (sys, "excepthook"), (threading, "excepthook")):
        monkeypatch.setattr(place, name, getattr(place, name))
    yield
    logging.captureWarnings(False)


@pytest.mark.usefixtures("_stderr_as_it_was")
def test_workers_on_ray_finish_a_study(cluster: Path, mqasearch: Mqasearch, study_url: str) -> None:
    command = f"launch --engine ray --study-name demo --workers 2 --storage {study_url}"
    with noting_titles() as titles:
        code, out, err = mqasearch(f"--log-format json {command}")
    assert code == 0, err
    said = [json.loads(line) for line in err.splitlines()]
    trials = [row for row in said if " trial " in row["message"]]
    assert any(row.get("worker", "").startswith("demo worker ") for row in trials)
    greedy, tpe = rows_of(study_url)
    assert greedy["complete"] >= 1
    assert tpe["complete"] + tpe["probes"] == 6
    assert all(row["running"] + row["waiting"] + row["failed"] == 0 for row in (greedy, tpe))
    # the password is nowhere: titles of processes, output, what Ray logs and shows
    assert any("worker" in title for title in titles)
    for text in (*titles, out, err):
        assert "canary" not in text
    for path in cluster.rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert b"canary" not in path.read_bytes(), path


def test_a_refusal_is_one_line_and_the_launchers_exit_code(
    cluster: Path, mqasearch: Mqasearch, study_url: str
) -> None:
    another = ModelFacts("another model", "float32", "mean", "", {})
    with contextlib.closing(open_storage(study_url)) as storage:
        study = optuna.load_study(study_name="demo.greedy", storage=storage.optuna)
        agree_on_model(storage.optuna, study, another)
    code, _, err = mqasearch(
        f"launch --engine ray --study-name demo --workers 1 --storage {study_url}"
    )
    assert code == 2
    (line,) = [line for line in err.splitlines() if line.startswith("mqasearch: ")]
    assert "would not be comparable" in line
    assert "Traceback" not in err
    assert "canary" not in err


def test_an_interrupt_gives_trials_back(
    cluster: Path, mqasearch: Mqasearch, postgres_url: str
) -> None:
    with contextlib.closing(open_storage(postgres_url)) as storage:
        create(storage, parse_spec(STUDY | {"model": "fake:8:1"}, "study.yaml"))
        over = threading.Event()

        def interrupt() -> None:
            while not any(row["running"] for row in rows_of(postgres_url)):
                if over.wait(0.2):
                    return
            signal.raise_signal(signal.SIGTERM)

        interrupting = threading.Thread(target=interrupt)
        interrupting.start()
        try:
            code, _, err = mqasearch(
                f"launch --engine ray --study-name demo --workers 1 --storage {postgres_url}"
            )
        finally:
            over.set()
            interrupting.join()
    assert code == 143, err
    greedy, _ = rows_of(postgres_url)
    assert greedy["running"] == 0  # given back: nobody waits for a grace period
    assert greedy["failed"] == 0


def test_an_outage_is_met_with_another_try(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_tasks, "PAUSE_SECONDS", 0.01)
    calls = []

    def work(passes_at: int) -> Callable[[str, Fleet], None]:
        def once(url: str, fleet: Fleet) -> None:
            calls.append(url)
            if len(calls) < passes_at:
                raise DatabaseAwayError("away")

        return once

    assert ray_tasks._live(work(3), "url", Fleet("demo", 1)) is None
    assert len(calls) == 3
    calls.clear()
    refusal = ray_tasks._live(work(100), "url", Fleet("demo", 1))
    assert len(calls) == 1 + ray_tasks.RESTARTS
    assert refusal is not None
    assert (refusal.words, refusal.kind) == ("away", TransientError)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", ""])
def test_without_a_cluster(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    def nobody(**_: object) -> None:
        raise ConnectionError("Could not find any running Ray instance.\nMore.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", nobody)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match=r"no Ray cluster.*ray start --head") as raised:
        run_on_ray(Fleet("demo", 1), "postgresql://h/d", lambda url, fleet: None)
    assert "\n" not in str(raised.value)


def test_what_ray_keeps_free() -> None:
    assert resources(Fleet("demo", 1)) == {"num_cpus": 1, "num_gpus": 0}
    full = Fleet("demo", 1, gpus=1, cpus=4, memory=2)
    assert resources(full) == {"num_cpus": 4, "num_gpus": 1, "memory": 2**31}
