"""Studies of a version without a queue are upgraded and gone on with."""

import json
import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from optuna.trial import TrialState
from sqlalchemy import create_engine, text
from studies_on_fake import run_study, spec_of, storage_in, studies_of

from mqasearch.creation import versions
from mqasearch.errors import StorageError
from mqasearch.record.storage import Storage, open_storage, upgrade_storage
from mqasearch.scoring import FakeScorer, scoring_code
from mqasearch.study import Selection, compare, find_studies, finished, open_selections

HALF_DONE = Path(__file__).with_name("databases") / "r0003_half_done.sql"
"""Left by mqasearch 0.1 with schema 0003: one study nearly done, two whose workers died with two
masks each in hand, and one whose masks nobody has begun."""

SPEC = spec_of(
    model="fake:6",
    selectors=["sensitivity", "greedy", {"name": "random", "n_trials": 8}],
    enqueue={"first": [0], "last": [4, 5]},
)


@pytest.fixture
def url(tmp_path: Path) -> str:
    dump = HALF_DONE.read_text()
    for key, value in (("code", scoring_code()), ("versions", versions())):  # else it is refused
        old = rf'"{key}": ("[^"]*"|{{[^}}]*}})'
        dump, n_changed = re.subn(old, f'"{key}": {json.dumps(value)}', dump)
        assert n_changed
    connection = sqlite3.connect(tmp_path / "studies.db")
    connection.executescript(dump)
    connection.close()
    return f"sqlite:///{tmp_path}/studies.db"


def selections(storage: Storage) -> dict[str, Selection]:
    found = open_selections(storage.optuna, find_studies(storage.optuna, "s"))
    return {selection.facts.selector: selection for selection in found}


def test_what_is_finished_stays_and_the_rest_is_queued(url: str) -> None:
    upgrade_storage(url)
    with closing(open_storage(url, create=False)) as storage:
        found = {
            name: [(task.mask, task.state) for task in selection.tasks()]
            for name, selection in selections(storage).items()
        }
        assert found["sensitivity"][4:8] == [
            ("000100", "pruned"),
            ("000010", "invalid"),
            ("000001", "pruned"),
            ("100101", "complete"),
        ]
        assert len(found["sensitivity"]) == 9
        queued = {
            name: [mask for mask, state in rows if state == "queued"]
            for name, rows in found.items()
        }
        assert queued == {
            "sensitivity": [],
            "greedy": ["100000", "010000"],
            "random": ["000000", "001011"],
            "enqueued": ["000000", "100000", "000011"],
        }
        names = [task.name for task in selections(storage)["enqueued"].tasks()]
        assert names == ["original", "first", "last"]
        for study in studies_of(storage):
            assert TrialState.RUNNING not in {trial.state for trial in study.get_trials()}


def test_it_is_gone_on_with_and_ends_as_if_it_had_begun_now(url: str, tmp_path: Path) -> None:
    upgrade_storage(url)
    upgrade_storage(url)
    (tmp_path / "new").mkdir()
    rows, masks = [], []
    for storage in (open_storage(url, create=False), storage_in(tmp_path / "new")):
        with closing(storage):
            run_study(storage, SPEC, FakeScorer(6, diverging=(4,)))
            chosen = {row.selector: (row.layers, row.value) for row in compare(studies_of(storage))}
            chosen.pop("random")  # its masks follow from the numbers of the tasks
            rows.append(chosen)
            found = [sorted(row.facts.mask for row in finished(s)) for s in studies_of(storage)]
            masks.append([*found[:2], *found[3:]])
            assert all(len(one) == len(set(one)) for one in found)
            assert len(selections(storage)["random"].tasks()) == 8
            for study in studies_of(storage):
                assert all(trial.state.is_finished() for trial in study.get_trials())
    assert rows[0] == rows[1]
    assert masks[0] == masks[1]


def test_nothing_is_upgraded_while_workers_of_the_older_version_are_at_work(url: str) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO mqasearch_worker VALUES ('w', 'node7', 4321, 'cpu', '{}', NULL, NULL,"
                " 0, strftime('%s', 'now'), strftime('%s', 'now'))"
            )
        )
    with pytest.raises(StorageError, match=r"1 worker.*process 4321 on node7.*stop them") as said:
        upgrade_storage(url)
    assert "\n" not in str(said.value)
    with pytest.raises(StorageError, match="older mqasearch"):
        open_storage(url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE mqasearch_worker SET seen_at = seen_at - 3600"))
    upgrade_storage(url)
    open_storage(url, create=False).close()
    engine.dispose()
