"""Tasks of the dead are taken over at once where they are certainly dead, and only there."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from studies_on_fake import spec_of, storage_in

from mqasearch.creation import create_studies
from mqasearch.queue import Queue
from mqasearch.queue.orphans import take_over
from mqasearch.queue.roster import Presence, place
from mqasearch.record import Storage
from mqasearch.scoring import FakeScorer
from mqasearch.study import Selection, find_studies, open_selections

SCORER = FakeScorer(6)
SPEC = spec_of(selectors=["greedy"], model="fake:6")


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Storage]:
    opened = storage_in(tmp_path)
    create_studies(opened.optuna, SPEC, SCORER.shape)
    yield opened
    opened.close()


@pytest.fixture
def selection(storage: Storage) -> Selection:
    (only,) = open_selections(storage.optuna, dict(find_studies(storage.optuna, SPEC.name)))
    return only


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def leave_task(
    storage: Storage, selection: Selection, monkeypatch: pytest.MonkeyPatch, pid: int, where: str
) -> None:
    """A worker takes the enqueued task and is never heard of again."""
    gone = Presence(storage.engine, storage.patience, "cpu", {}, worker=f"{where}-gone")
    with monkeypatch.context() as patch:
        patch.setattr("os.getpid", lambda: pid)
        gone._transact(gone._register)
    assert Queue(storage.engine, worker=gone.worker).take(selection.study_id) is not None


def states(selection: Selection) -> list[str]:
    return [task.state for task in selection.tasks()]


def test_a_worker_whose_process_is_gone(
    storage: Storage, selection: Selection, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_task(storage, selection, monkeypatch, dead_pid(), place())
    assert states(selection) == ["leased"]
    assert take_over(Queue(storage.engine, storage.patience), "me") == 1
    assert states(selection) == ["queued"]
    assert take_over(Queue(storage.engine, storage.patience), "me") == 0


def test_one_that_is_alive_does_not_keep_the_tasks_of_a_dead_one(
    storage: Storage, selection: Selection, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Presence(storage.engine, storage.patience, "cpu", {}):
        leave_task(storage, selection, monkeypatch, dead_pid(), place())
        assert take_over(Queue(storage.engine, storage.patience), "me") == 1


@pytest.mark.parametrize(("pid", "where"), [(1, None), (None, "elsewhere-0123")])
def test_a_worker_that_may_be_alive(
    storage: Storage,
    selection: Selection,
    monkeypatch: pytest.MonkeyPatch,
    pid: int | None,
    where: str | None,
) -> None:
    leave_task(storage, selection, monkeypatch, pid or dead_pid(), where or place())
    assert take_over(Queue(storage.engine, storage.patience), "me") == 0
    assert states(selection) == ["leased"]
