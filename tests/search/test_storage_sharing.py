"""Laws of the shared storage: lost answers, parameters written at once, workers that die."""

import contextlib
import json
import sqlite3
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from sqlalchemy import event, text

from mqasearch.errors import DatabaseAwayError
from mqasearch.mask import LayerMask
from mqasearch.search.storage import Storage, open_storage
from mqasearch.search.storage_stale import DEATHS, GIVEN_BACK_KEY
from mqasearch.selectors import INVALID_KEY, MASK_KEY, mask_params

pytestmark = pytest.mark.filterwarnings("ignore:Heartbeat of storage:UserWarning")

N_LAYERS = 6
MASK = LayerMask.of([1, 4], N_LAYERS)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/study.db"


@pytest.fixture(params=["sqlite", "postgresql"])
def any_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/study.db"
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture
def storage(any_url: str) -> Iterator[Storage]:
    opened = open_storage(any_url, grace=1, heartbeat=1)
    yield opened
    opened.close()


def new_study(storage: Storage) -> optuna.Study:
    return optuna.create_study(storage=storage.optuna, sampler=optuna.samplers.RandomSampler(0))


def half_suggested(storage: Storage) -> tuple[optuna.Study, optuna.Trial]:
    """A running trial, one parameter of which is kept back."""
    study = new_study(storage)
    study.optimize(objective, n_trials=1)
    trial = study.ask()
    trial.suggest_categorical("layer_00", (False, True))
    return study, trial


def objective(trial: optuna.Trial) -> float:
    trial.set_user_attr(MASK_KEY, str(MASK))
    flags = [trial.suggest_categorical(name, (False, True)) for name in mask_params(MASK)]
    trial.report(1.0, step=2)
    return float(sum(flags))


def facts(study: optuna.Study) -> list[Any]:
    return [
        (trial.number, trial.state, trial.values, trial.params, trial.user_attrs)
        for trial in study.get_trials()
    ]


def scenario(storage: Storage) -> list[Any]:
    """Everything a study does to its storage, once."""
    study = new_study(storage)
    study.set_user_attr("mqasearch:study", {"n": 1})
    study.enqueue_trial(mask_params(MASK), user_attrs={"name": "mine"})
    study.optimize(objective, n_trials=3)
    return facts(study)


def lose(storage: Storage, number: int, monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Let the answer of one commit get lost: it happens, and the client hears of a failure.

    Returns:
        One item per commit.
    """
    commits: list[None] = []
    commit = type(storage.engine.dialect).do_commit

    def lossy(connection: Any) -> None:
        commit(storage.engine.dialect, connection)
        commits.append(None)
        if len(commits) == number:
            raise sqlite3.OperationalError("database is locked (not really)")

    monkeypatch.setattr(storage.engine.dialect, "do_commit", lossy)
    return commits


def test_a_lost_answer_changes_nothing_whichever_it_is(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(url)
    commits = lose(storage, 0, monkeypatch)
    expected = scenario(storage)
    assert [state for _, state, *_ in expected] == [TrialState.COMPLETE] * 3
    for number in range(1, len(commits) + 1):
        lose(storage, number, monkeypatch)
        assert scenario(storage) == expected, f"commit {number} of {len(commits)}"
    assert len(commits) > 15
    storage.close()


def test_parameters_cost_one_transaction(storage: Storage) -> None:
    study = new_study(storage)
    study.optimize(objective, n_trials=1)
    trial = study.ask()
    commits: list[int] = []
    event.listen(storage.engine, "commit", lambda _: commits.append(1))
    for name in mask_params(MASK):
        trial.suggest_categorical(name, (False, True))
    assert not commits
    storage.optuna.flush()
    assert len(commits) == 1
    assert storage.optuna.get_trial(trial._trial_id).params.keys() == mask_params(MASK).keys()
    study.tell(trial, 1.0)


@pytest.mark.parametrize(
    "ask",
    [
        lambda storage, trial: storage.get_trial(trial._trial_id).params,
        lambda storage, trial: storage.get_all_trials(trial.study._study_id)[-1].params,
        lambda storage, trial: {"x": storage.get_trial_param(trial._trial_id, "x")},
    ],
)
def test_whoever_asks_for_parameters_finds_them(
    storage: Storage, ask: Callable[[Any, optuna.Trial], dict[str, Any]]
) -> None:
    study = new_study(storage)
    study.optimize(lambda trial: float(trial.suggest_categorical("x", (0, 1))), n_trials=1)
    trial = study.ask()
    trial.suggest_categorical("x", (0, 1))
    assert ask(storage.optuna, trial).keys() == {"x"}
    study.tell(trial, 1.0)
    assert study.trials[-1].params.keys() == {"x"}


def test_parameters_of_a_trial_that_was_failed_meanwhile_are_dropped(storage: Storage) -> None:
    study, trial = half_suggested(storage)
    other = open_storage(storage.engine.url.render_as_string(hide_password=False))
    other.optuna.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    other.close()
    with pytest.raises(ValueError, match="Cannot tell a FAIL trial"):
        study.tell(trial, 1.0)
    assert study.trials[-1].params == {}


def make_silent(storage: Storage) -> None:
    """As if nothing had been heard of any trial for an hour, and nobody had looked."""
    storage.optuna._asked.clear()
    hour_ago = {
        "sqlite": "datetime('now', '-1 hour')",
        "postgresql": "now() - interval '1 hour'",
    }[storage.engine.dialect.name]
    with storage.engine.begin() as connection:
        connection.execute(text(f"UPDATE trial_heartbeats SET heartbeat = {hour_ago}"))


def fail_stale(study: optuna.Study) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optuna.storages.fail_stale_trials(study)


@pytest.fixture
def old_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server has been up for longer than the grace."""
    monkeypatch.setattr("mqasearch.search.storage_optuna.SharedStorage._just_started", bool)


@pytest.mark.usefixtures("old_server")
def test_a_worker_that_dies_before_its_first_heartbeat_is_noticed(storage: Storage) -> None:
    study = new_study(storage)
    study.enqueue_trial(mask_params(MASK))
    taken, fresh = study.ask(), study.ask()
    assert taken.number == 0
    make_silent(storage)
    fail_stale(study)
    states = {trial.number: trial.state for trial in study.get_trials()}
    assert states[taken.number] == states[fresh.number] == TrialState.FAIL
    # The enqueued one is queued again; the other one had no mask that could be lost.
    assert list(states.values()).count(TrialState.WAITING) == 1


@pytest.mark.usefixtures("old_server")
def test_a_mask_that_kills_its_workers_is_given_up(storage: Storage) -> None:
    study = new_study(storage)
    trial = study.ask()
    trial.set_user_attr(MASK_KEY, str(MASK))
    for death in range(1, DEATHS):
        make_silent(storage)
        fail_stale(study)
        successor = study.get_trials()[-1]
        assert successor.state == TrialState.WAITING
        assert successor.system_attrs["fixed_params"] == mask_params(MASK)
        assert successor.user_attrs[MASK_KEY] == str(MASK)
        assert study.ask().number == successor.number == death
    make_silent(storage)
    fail_stale(study)
    last = study.get_trials()[-1]
    assert last.state == TrialState.FAIL
    assert last.user_attrs[MASK_KEY] == str(MASK)
    assert f"{DEATHS} workers" in last.user_attrs[INVALID_KEY]


def test_after_a_restart_of_the_server_everybody_gets_the_grace_to_be_heard(
    postgres_url: str,
) -> None:
    storage = open_storage(postgres_url, grace=3600)
    study = new_study(storage)
    study.ask()
    make_silent(storage)
    make_silent(storage)
    with storage.engine.begin() as connection:
        connection.execute(
            text("UPDATE trial_heartbeats SET heartbeat = heartbeat - interval '9 hours'")
        )
    fail_stale(study)
    assert study.get_trials()[0].state == TrialState.RUNNING
    storage.close()


def interrupted(trial: optuna.Trial) -> float:
    trial.set_user_attr(MASK_KEY, str(MASK))
    trial.set_user_attr(GIVEN_BACK_KEY, True)
    raise KeyboardInterrupt


def test_a_trial_and_its_successor_change_places_in_one_transaction(storage: Storage) -> None:
    study = new_study(storage)
    trial = study.ask()
    trial.set_user_attr(MASK_KEY, str(MASK))
    commits: list[int] = []
    event.listen(storage.engine, "commit", lambda _: commits.append(1))
    study.tell(trial, state=TrialState.FAIL)
    assert [one.state for one in study.get_trials()] == [TrialState.FAIL, TrialState.WAITING]
    assert len(commits) == 1


def test_a_lost_answer_queues_no_second_successor(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = new_study(storage)
    trial = study.ask()
    trial.set_user_attr(MASK_KEY, str(MASK))
    lose(storage, 1, monkeypatch)
    study.tell(trial, state=TrialState.FAIL)
    assert [one.state for one in study.get_trials()] == [TrialState.FAIL, TrialState.WAITING]


def test_two_that_fail_a_trial_at_once_queue_one_successor(any_url: str) -> None:
    opened = [open_storage(any_url) for _ in range(2)]
    study = new_study(opened[0])
    for _ in range(15):
        trial = study.ask()
        trial.set_user_attr(MASK_KEY, str(MASK))
        together = threading.Barrier(2)

        def fail(
            storage: Storage, trial: optuna.Trial = trial, together: threading.Barrier = together
        ) -> bool:
            together.wait()
            with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
                return storage.optuna.set_trial_state_values(trial._trial_id, TrialState.FAIL)
            return False

        with ThreadPoolExecutor(2) as pool:
            assert sorted(pool.map(fail, opened)) == [False, True]
        (successor,) = study.get_trials(states=(TrialState.WAITING,))
        successor_trial = study.ask()
        assert successor_trial.number == successor.number
        successor_trial.set_user_attr(INVALID_KEY, "enough")
        study.tell(successor_trial, state=TrialState.FAIL)
    for storage in opened:
        storage.close()


def test_nobody_died_of_a_mask_that_was_given_back(storage: Storage) -> None:
    study = new_study(storage)
    for _ in range(DEATHS + 1):
        with pytest.raises(KeyboardInterrupt):
            study.optimize(interrupted, n_trials=1)
    last = study.get_trials()[-1]
    assert last.state == TrialState.WAITING
    assert INVALID_KEY not in last.user_attrs
    assert GIVEN_BACK_KEY not in last.user_attrs


def in_processes(action: str, url: str, n: int) -> list[list[int]]:
    script = Path(__file__).with_name("storage_process.py")
    processes = [
        subprocess.Popen([sys.executable, script, action, url], stdout=subprocess.PIPE)
        for _ in range(n)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * n
    return [json.loads(output) for output in outputs]


def test_workers_that_start_at_once_on_nothing_and_never_get_the_same_trial(any_url: str) -> None:
    in_processes("create", any_url, 2)
    storage = open_storage(any_url)
    study = optuna.load_study(study_name="study", storage=storage.optuna)
    for _ in range(40):
        study.enqueue_trial(mask_params(MASK))
    taken = in_processes("take", any_url, 2)
    numbers = sorted(number for one in taken for number in one)
    assert numbers == list(range(len(numbers)))  # the last ones may have found nothing waiting
    assert len(numbers) >= 40
    assert all(trial.state == TrialState.COMPLETE for trial in study.get_trials())
    storage.close()


def test_the_end_of_a_trial_waits_for_parameters_that_the_heartbeat_is_writing(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, trial = half_suggested(storage)
    insert = storage.optuna._insert
    begun, go_on = threading.Event(), threading.Event()

    def slow(*arguments: Any) -> None:
        begun.set()
        go_on.wait(10)
        insert(*arguments)

    monkeypatch.setattr(storage.optuna, "_insert", slow)
    with ThreadPoolExecutor(2) as pool:
        heartbeat = pool.submit(storage.optuna.flush)
        assert begun.wait(10)
        ending = pool.submit(study.tell, trial, 1.0)
        with contextlib.suppress(TimeoutError):
            ending.result(0.3)
        assert not ending.done()
        go_on.set()
        heartbeat.result(10)
        ending.result(10)
    assert study.trials[-1].params.keys() == {"layer_00"}


def test_parameters_that_could_not_be_written_are_written_later(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, trial = half_suggested(storage)
    with monkeypatch.context() as away:
        away.setattr(storage.optuna, "_insert", lambda *_: raise_(DatabaseAwayError("away")))
        with pytest.raises(DatabaseAwayError):
            storage.optuna.flush()
    study.tell(trial, 1.0)
    assert study.trials[-1].params.keys() == {"layer_00"}


def raise_(error: Exception) -> None:
    raise error
