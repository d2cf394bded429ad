"""Laws of the storage that Optuna's studies are kept in: lost answers, processes at once."""

import pickle
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from studies_on_fake import storage_in

from mqasearch.database import Patience
from mqasearch.errors import DatabaseAwayError
from mqasearch.record.optuna_storage import SharedStorage
from mqasearch.record.storage import Storage, open_storage

SCORE = 0.5


@pytest.fixture(params=["sqlite", "postgresql"])
def any_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/study.db"
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture
def storage(any_url: str) -> Iterator[Storage]:
    opened = open_storage(any_url)
    yield opened
    opened.close()


class Losing:
    """Lets the answer of one commit get lost: it happens, and the client hears of a failure."""

    def __init__(self, storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
        self.n_commits = 0
        self.lost = 0
        commit = type(storage.engine.dialect).do_commit

        def lossy(dialect: Any, connection: Any) -> None:  # of whichever engine
            commit(dialect, connection)
            self.n_commits += 1
            if self.n_commits == self.lost:
                raise sqlite3.OperationalError("database is locked (not really)")

        monkeypatch.setattr(type(storage.engine.dialect), "do_commit", lossy)

    def begin(self, lost: int) -> None:
        self.n_commits, self.lost = 0, lost


def scenario(storage: SharedStorage, losing: Losing, lost: int) -> list[Any]:
    """What is done to a study, beside making it and its trials; what is left of it."""
    study = optuna.create_study(storage=storage)
    study_id = storage.get_study_id_from_name(study.study_name)
    trial = storage.create_new_trial(study_id)
    losing.begin(lost)
    study.set_user_attr("mqasearch:study", {"n": 1})
    storage.set_study_system_attr(study_id, "system", 1)
    storage.set_trial_user_attr(trial, "facts", {"value": SCORE})
    storage.set_trial_system_attr(trial, "system", 2)
    storage.set_trial_intermediate_value(trial, 3, SCORE)
    storage.set_trial_state_values(trial, TrialState.COMPLETE, [SCORE])
    (found,) = storage.get_all_trials(study_id)
    storage.delete_study(study_id)
    attributes = [found.user_attrs, found.system_attrs, found.intermediate_values]
    return [found.state, found.values, *attributes, len(storage.get_all_studies())]


def test_a_lost_answer_changes_nothing_whichever_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/study.db")
    losing = Losing(storage, monkeypatch)
    expected = scenario(storage.optuna, losing, 0)
    n_commits = losing.n_commits
    assert expected[:2] == [TrialState.COMPLETE, [SCORE]]
    assert n_commits >= 7
    for lost in range(1, n_commits + 1):
        assert scenario(storage.optuna, losing, lost) == expected, f"commit {lost} of {n_commits}"
    storage.close()


def test_a_finished_trial_stays_as_it_is(storage: Storage) -> None:
    study = optuna.create_study(storage=storage.optuna)
    study_id = storage.optuna.get_study_id_from_name(study.study_name)
    trial = storage.optuna.create_new_trial(study_id)
    storage.optuna.set_trial_state_values(trial, TrialState.COMPLETE, [SCORE])
    with pytest.raises(UpdateFinishedTrialError):
        storage.optuna.set_trial_state_values(trial, TrialState.FAIL)


def test_a_database_that_stays_away_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/study.db", patience=Patience(0.2))
    study = optuna.create_study(storage=storage.optuna)

    def away(*_: Any) -> None:
        raise sqlite3.OperationalError("unable to open database file")

    with monkeypatch.context() as patched:
        patched.setattr(type(storage.engine.dialect), "do_execute", away)
        for ask in (study.get_trials, lambda: study.set_user_attr("x", 1)):
            with pytest.raises(DatabaseAwayError, match="did not answer for 0 s") as caught:
                ask()
            assert "\n" not in str(caught.value)
    study.set_user_attr("x", 1)
    assert study.user_attrs == {"x": 1}
    storage.close()


def test_a_copy_in_another_process_has_connections_of_its_own(tmp_path: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/study.db")
    optuna.create_study(study_name="s", storage=storage.optuna)
    copy: SharedStorage = pickle.loads(pickle.dumps(storage.optuna))
    assert [study.study_name for study in copy.get_all_studies()] == ["s"]
    assert copy.engine is not storage.engine
    copy.close()
    storage.close()


def test_what_another_process_writes_is_seen(any_url: str) -> None:
    """Finished trials are remembered, and nothing else."""
    one, other = open_storage(any_url), open_storage(any_url)
    study = optuna.create_study(study_name="s", storage=one.optuna)
    seen = optuna.load_study(study_name="s", storage=other.optuna)
    for number in range(3):
        assert len(seen.trials) == number
        study.add_trial(optuna.create_trial(value=float(number)))
        study.set_user_attr("n", number)
        assert [trial.value for trial in seen.trials] == [float(n) for n in range(number + 1)]
        assert seen.user_attrs == {"n": number}
    optuna.delete_study(study_name="s", storage=one.optuna)
    with pytest.raises(KeyError):
        _ = seen.user_attrs
    one.close()
    other.close()


def test_processes_that_start_at_once_on_nothing_make_one_database(any_url: str) -> None:
    script = Path(__file__).with_name("storage_process.py")
    processes = [subprocess.Popen([sys.executable, script, any_url]) for _ in range(2)]
    for process in processes:
        process.wait(timeout=120)
    assert [process.returncode for process in processes] == [0, 0]
    storage = open_storage(any_url)
    assert [study.study_name for study in storage.optuna.get_all_studies()] == ["study"]
    storage.close()


def test_optunas_own_storage_reads_what_ours_wrote(tmp_path: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/study.db")
    study = optuna.create_study(study_name="s", storage=storage.optuna)
    study.add_trial(optuna.create_trial(value=SCORE))
    theirs = RDBStorage(str(storage.engine.url))
    assert optuna.load_study(study_name="s", storage=theirs).best_value == SCORE
    theirs.remove_session()
    theirs.engine.dispose()
    storage.close()


def test_a_new_study_has_none_of_the_trials_of_a_deleted_one(tmp_path: Path) -> None:
    """SQLite gives its number to the new one, whichever process deleted it."""
    ours, other = (storage_in(tmp_path) for _ in range(2))
    first = optuna.create_study(storage=ours.optuna, study_name="first")
    first.add_trial(optuna.create_trial(value=1.0))
    assert len(first.trials) == 1
    optuna.delete_study(study_name="first", storage=other.optuna)
    second = optuna.create_study(storage=ours.optuna, study_name="second")
    second.add_trial(optuna.create_trial(value=2.0))
    assert [trial.value for trial in second.trials] == [2.0]
    for storage in (ours, other):
        storage.close()


def test_a_trial_that_another_process_enqueued_can_be_run(tmp_path: Path) -> None:
    ours, other = (storage_in(tmp_path) for _ in range(2))
    optuna.create_study(storage=ours.optuna, study_name="s").enqueue_trial({"x": 0.5})
    study = optuna.load_study(storage=other.optuna, study_name="s")
    assert study.ask().suggest_float("x", 0, 1) == 0.5
    for storage in (ours, other):
        storage.close()


def test_a_reader_waits_for_no_writer(tmp_path: Path) -> None:
    with closing(storage_in(tmp_path)) as storage, storage.engine.begin() as writing:
        writing.exec_driver_sql("UPDATE mqasearch_worker SET device = device")
        with closing(open_storage(f"sqlite:///{tmp_path}/studies.db", read_only=True)) as reader:
            assert reader.optuna.get_all_studies() == []
