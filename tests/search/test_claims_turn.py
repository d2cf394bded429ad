"""One worker at a time decides; nobody waits for the dead."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url
from studies_on_fake import run_study, spec_of, studies_of

from mqasearch.evaluation.fake import FakeScorer
from mqasearch.results import ScoreStore
from mqasearch.search.claims import Claims
from mqasearch.search.claims_turn import Turn
from mqasearch.search.run import Watcher
from mqasearch.search.selection import Selection
from mqasearch.search.storage import Storage, open_storage


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/study.db"
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture
def storages(url: str) -> Iterator[list[Storage]]:
    """As many workers; each has connections of its own."""
    opened = [open_storage(url) for _ in range(4)]
    yield opened
    for storage in opened:
        storage.close()


def turn_of(storage: Storage, study_id: int = 1) -> Turn:
    claims = Claims(storage.engine, ScoreStore(storage.engine), storage.patience)
    return Turn(storage, claims, study_id)


def test_turns_of_a_study_never_overlap_and_everybody_gets_one(storages: list[Storage]) -> None:
    inside: list[int] = []
    overlaps: list[int] = []

    def work(storage: Storage) -> None:
        for _ in range(10):
            with turn_of(storage):
                inside.append(1)
                overlaps.append(len(inside))
                time.sleep(0.002)
                inside.pop()

    with ThreadPoolExecutor(len(storages)) as pool:
        list(pool.map(work, storages))
    assert overlaps == [1] * 10 * len(storages)


def test_other_studies_have_turns_of_their_own(storages: list[Storage]) -> None:
    with turn_of(storages[0], 1), turn_of(storages[1], 2):
        pass


def test_a_turn_may_end_early_and_ends_once(storages: list[Storage]) -> None:
    with turn_of(storages[0]) as turn:
        turn.end()
        with turn_of(storages[1]):
            turn.end()
            waiting = threading.Thread(target=lambda: turn_of(storages[2]).__enter__().end())
            waiting.start()
            waiting.join(0.3)
            assert waiting.is_alive()
        waiting.join(10)
        assert not waiting.is_alive()


def test_the_turn_of_the_dead_passes_on(
    storages: list[Storage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mqasearch.search.claims_turn.LEASE_SECONDS", 0.5)
    monkeypatch.setattr("mqasearch.search.claims.seconds_started", lambda: 0.0)
    dead = turn_of(storages[0]).__enter__()
    if make_url(storages[0].url_hidden).get_backend_name() == "postgresql":
        assert dead._connection is not None
        dead._connection.connection.driver_connection.pgconn.finish()  # its process is gone
    with turn_of(storages[1]):
        pass
    dead.end()


@pytest.mark.parametrize("n_trials", [2, 4])
def test_a_decision_from_a_turn_that_was_lost_starts_nothing(
    url: str, n_trials: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every time one worker has decided to start a trial, another one does so before it."""
    monkeypatch.setattr(Turn, "__enter__", lambda turn: turn)
    spec = spec_of(model="fake:6", selectors=[{"name": "random", "n_trials": n_trials}])
    scorer = FakeScorer(6)
    slow, quick = open_storage(url), open_storage(url)

    def overtake(_: Selection) -> None:
        run_study(quick, spec, scorer, n_trials=1)

    run_study(slow, spec, scorer, watcher=Watcher(on_start=overtake))
    (study,) = studies_of(slow)
    assert len(study.trials) == n_trials
    slow.close()
    quick.close()
