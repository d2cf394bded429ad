"""Laws of the record: each finished task is one trial of Optuna's study, whatever happens."""

import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool
from studies_on_fake import run_study, spec_of, storage_in, studies_of

from mqasearch.creation import create_studies
from mqasearch.queue import Queue, Result
from mqasearch.record import Storage, confirmation, open_storage
from mqasearch.scoring import FakeScorer
from mqasearch.selectors import param_name
from mqasearch.study.recording import Record, _lease, bring_up
from mqasearch.study.selection import Selection, find_studies, open_selections
from mqasearch.worker import Watcher

N_LAYERS = 6
SPEC = spec_of(selectors=["greedy"])
DIES = KeyboardInterrupt


@pytest.fixture(params=["sqlite", "postgresql"])
def any_storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    if request.param == "sqlite":
        opened = storage_in(tmp_path)
    else:
        opened = open_storage(request.getfixturevalue("postgres_url"))
    with closing(opened):
        yield opened


def selection_of(storage: Storage) -> Selection:
    (selection,) = open_selections(storage.optuna, find_studies(storage.optuna, "s"))
    return selection


def record_of(storage: Storage) -> Record:
    return Record(storage.optuna, [selection_of(storage)])


def finish_some(storage: Storage, n: int = 3) -> None:
    """The original, some masks that are scored, and one without a score."""
    create_studies(storage.optuna, SPEC, FakeScorer(N_LAYERS).shape)
    study_id = storage.optuna.get_study_id_from_name("s.greedy")
    queue = Queue(storage.engine, worker="done")
    first = queue.take(study_id)
    assert first is not None
    queue.finish(first, Result("pruned", 1.0, facts={"value": 1.0}))
    for number in range(1, n):
        task = queue.add(study_id, number, f"{number:03b}111")
        assert task is not None
        queue.finish(task, Result("complete", float(number), facts={"value": float(number)}))
    task = queue.add(study_id, n, "100000")
    assert task is not None
    queue.finish(task, Result("invalid", fault="nan"))


def trials_of(storage: Storage) -> list[tuple[TrialState, float | None, Any]]:
    (study,) = studies_of(storage)
    return [(t.state, t.value, t.user_attrs["mqasearch:mask"]) for t in study.get_trials()]


EXPECTED = [
    (TrialState.PRUNED, 1.0, "000000"),
    (TrialState.COMPLETE, 1.0, "001111"),
    (TrialState.COMPLETE, 2.0, "010111"),
    (TrialState.FAIL, None, "100000"),
]


def test_every_finished_task_becomes_a_trial_once(any_storage: Storage) -> None:
    finish_some(any_storage)
    for _ in range(2):
        record_of(any_storage).catch_up()
        assert trials_of(any_storage) == EXPECTED
    (study,) = studies_of(any_storage)
    assert study.best_value == 1.0
    flags = [study.trials[2].params[param_name(layer)] for layer in range(N_LAYERS)]
    assert flags == [False, True, False, True, True, True]
    assert study.trials[0].intermediate_values == {0: 1.0}
    assert study.trials[3].user_attrs["mqasearch:invalid"] == "nan"
    assert [trial.user_attrs["mqasearch:task"] for trial in study.trials] == [0, 1, 2, 3]


class Lossy:
    """Counts the commits of an engine, and lets something happen after one of them."""

    def __init__(self, storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counts: Counter[str] = Counter()
        self.number = 0
        self.fault: BaseException = DIES()
        commit = type(storage.engine.dialect).do_commit

        def lossy(dialect: Any, connection: Any) -> None:  # of whichever engine
            self.counts["commits"] += 1
            commit(dialect, connection)
            if self.counts["commits"] == self.number:
                raise self.fault

        monkeypatch.setattr(type(storage.engine.dialect), "do_commit", lossy)

    def at(self, number: int, fault: BaseException) -> None:
        self.counts.clear()
        self.number, self.fault = number, fault


@pytest.fixture(scope="module")
def finished_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    with closing(storage_in(folder)) as storage:
        finish_some(storage, 2)
    return folder / "studies.db"


def copied(database: Path, folder: Path) -> Storage:
    folder.mkdir()
    shutil.copy(database, folder)
    return storage_in(folder)


@pytest.mark.parametrize(
    "fault", [DIES(), sqlite3.OperationalError("database is locked (not really)")]
)
def test_a_process_that_dies_or_loses_an_answer_leaves_one_trial_a_task(
    finished_database: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: BaseException,
) -> None:
    """Whichever transaction it is in: the next one finishes what was begun."""
    with closing(copied(finished_database, tmp_path / "whole")) as storage:
        with monkeypatch.context() as patched:
            lossy = Lossy(storage, patched)
            record_of(storage).catch_up()
            n_commits = lossy.counts["commits"]
        expected = trials_of(storage)
    assert n_commits >= 16
    for number in range(1, n_commits + 1):
        with closing(copied(finished_database, tmp_path / str(number))) as storage:
            with monkeypatch.context() as patched, suppress(DIES):
                Lossy(storage, patched).at(number, fault)
                record_of(storage).catch_up()
            forget_leases(storage)
            record_of(storage).catch_up()
            found = trials_of(storage)
            strays = [mask for state, _, mask in found if state == TrialState.FAIL]
            strays.remove("100000")
            assert len(strays) <= 1, f"commit {number}"
            scored = [trial for trial in found if trial[0] != TrialState.FAIL]
            assert sorted(scored, key=str) == sorted(expected[:2], key=str), f"commit {number}"


def forget_leases(storage: Storage) -> None:
    """As time does."""
    with storage.engine.begin() as connection:
        connection.execute(text("DELETE FROM mqasearch_claim"))


def test_several_that_record_at_once_leave_one_trial_a_task(any_storage: Storage) -> None:
    finish_some(any_storage, 7)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: record_of(any_storage).catch_up(), range(3)))
    masks = [mask for _, _, mask in trials_of(any_storage)]
    assert len(masks) == len(set(masks)) == 8


def test_several_that_all_believe_they_have_the_lease_leave_one_trial_a_task(
    any_storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when each of them was paused for longer than it lasts."""
    finish_some(any_storage, 7)
    records = [record_of(any_storage) for _ in range(3)]
    monkeypatch.setattr("mqasearch.scores.claims.Claims.claim", lambda *_: True)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(Record.catch_up, records))
    record_of(any_storage).catch_up()
    states = trials_of(any_storage)
    assert all(state.is_finished() for state, *_ in states)
    masks = [mask for state, _, mask in states if state != TrialState.FAIL]
    assert len(masks) == len(set(masks)) == 7


@pytest.mark.parametrize("fixed", [{0: True, 5: True}, {}, {layer: True for layer in range(5)}])
def test_what_somebody_enqueues_in_optunas_study_is_scored(
    storage: Storage, fixed: dict[int, bool]
) -> None:
    """With every layer as it is, whatever the budget; else brought to the budget."""
    run_study(storage, SPEC, FakeScorer(N_LAYERS))
    (study,) = studies_of(storage)
    n_before = len(study.trials)
    whole = {param_name(layer): layer in (1, 2, 3, 5) for layer in range(N_LAYERS)}
    study.enqueue_trial(whole)
    study.enqueue_trial({param_name(layer): flag for layer, flag in fixed.items()})
    run_study(storage, SPEC, FakeScorer(N_LAYERS))
    tasks = selection_of(storage).tasks()
    named = [task for task in tasks if (task.name or "").startswith("trial ")]
    assert "011101" in [task.mask for task in named]
    for trial in study.trials[n_before : n_before + 2]:
        assert trial.state == TrialState.FAIL
        (task,) = (task for task in tasks if task.mask == trial.user_attrs["mqasearch:queued"])
        assert task.is_scored
        if task.mask != "011101":
            assert all(task.mask[layer] == "1" for layer in fixed)
            assert task.n_converted == max(3, len(fixed))
    assert all(trial.state.is_finished() for trial in study.trials)


def test_anybodys_script_reads_the_record(storage: Storage) -> None:
    """Through Optuna's own storage, without a name of ours."""
    run_study(storage, SPEC, FakeScorer(N_LAYERS))
    theirs = optuna.storages.RDBStorage(
        str(storage.engine.url), engine_kwargs={"poolclass": NullPool}
    )
    study = optuna.load_study(study_name="s.greedy", storage=theirs)
    assert study.best_trial.user_attrs["mqasearch:facts"]["value"] == study.best_value
    assert set(study.best_params) == {param_name(layer) for layer in range(N_LAYERS)}
    theirs.remove_session()
    theirs.engine.dispose()


def test_what_is_left_unrecorded_is_seen_to_in_the_background(storage: Storage) -> None:
    finish_some(storage)
    with record_of(storage) as record:
        record.notify()
    assert trials_of(storage) == EXPECTED
    engine = create_engine(storage.engine.url)
    with engine.connect() as connection:
        left = connection.execute(text("SELECT count(*) FROM mqasearch_claim")).scalar_one()
    assert left == 0
    engine.dispose()


def test_what_is_enqueued_in_a_study_that_ended_is_scored_while_another_one_goes_on(
    storage: Storage,
) -> None:
    spec = spec_of(selectors=["greedy", "sensitivity"])
    done: list[str] = []

    def enqueue_once(selection: Selection, _: object) -> None:
        if selection.facts.selector == "sensitivity" and not done:
            done.append("enqueued")
            study = optuna.load_study(study_name="s.greedy", storage=storage.optuna)
            study.enqueue_trial({param_name(layer): layer > 1 for layer in range(N_LAYERS)})
            greedy = open_selections(storage.optuna, find_studies(storage.optuna, "s.greedy"))
            Record(storage.optuna, greedy).catch_up()  # as another worker does

    run_study(storage, spec, FakeScorer(N_LAYERS), watcher=Watcher(on_trial=enqueue_once))
    greedy, _ = open_selections(storage.optuna, find_studies(storage.optuna, "s"))
    (task,) = (task for task in greedy.tasks() if task.mask == "001111")
    assert done
    assert task.is_scored
    assert all(confirmation(study.user_attrs) is not None for study in studies_of(storage))


def test_a_lease_of_a_process_that_died_is_waited_for(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mqasearch.study.recording.LEASE_SECONDS", 0.3)
    finish_some(storage)
    dead = record_of(storage)
    study_id = storage.optuna.get_study_id_from_name("s.greedy")
    assert dead._claims.claim(_lease(study_id), 0.3)
    record_of(storage).catch_up(within=0)
    assert trials_of(storage) == []
    bring_up(storage.optuna, "s")
    assert trials_of(storage) == EXPECTED
