"""Trials of the dead are taken over at once where they are certainly dead, and only there."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from optuna.trial import TrialState
from studies_on_fake import spec_of, storage_in

from mqasearch.evaluation.fake import FakeScorer
from mqasearch.search.create import create_studies
from mqasearch.search.orphans import take_over
from mqasearch.search.roster import Presence, place
from mqasearch.search.selection import Selection, find_studies, open_selections
from mqasearch.search.storage import Storage

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


def leave_trial(
    storage: Storage, selection: Selection, monkeypatch: pytest.MonkeyPatch, pid: int, where: str
) -> None:
    """A worker starts the enqueued trial and is never heard of again."""
    gone = Presence(storage.engine, storage.patience, "cpu", {}, worker=f"{where}-gone")
    with monkeypatch.context() as patch:
        patch.setattr("os.getpid", lambda: pid)
        gone._transact(gone._register)
    with pytest.warns(UserWarning, match="Heartbeat"):
        selection.study.ask()


def states(selection: Selection) -> list[TrialState]:
    return [trial.state for trial in selection.study.get_trials()]


def test_a_worker_whose_process_is_gone(
    storage: Storage, selection: Selection, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_trial(storage, selection, monkeypatch, dead_pid(), place())
    assert states(selection) == [TrialState.RUNNING]
    assert take_over(storage, [selection], "me") == 1
    assert states(selection) == [TrialState.FAIL, TrialState.WAITING]
    assert take_over(storage, [selection], "me") == 0


@pytest.mark.parametrize(("pid", "where"), [(1, None), (None, "elsewhere-0123")])
def test_a_worker_that_may_be_alive(
    storage: Storage,
    selection: Selection,
    monkeypatch: pytest.MonkeyPatch,
    pid: int | None,
    where: str | None,
) -> None:
    leave_trial(storage, selection, monkeypatch, pid or dead_pid(), where or place())
    assert take_over(storage, [selection], "me") == 0
    assert states(selection) == [TrialState.RUNNING]
