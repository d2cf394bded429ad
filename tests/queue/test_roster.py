"""Who is at work."""

import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from mqasearch.database import Patience
from mqasearch.errors import DatabaseAwayError
from mqasearch.queue.roster import SILENT_SECONDS, Presence, list_workers
from mqasearch.record import Storage, open_storage


@pytest.fixture(params=["sqlite", "postgresql"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    url = f"sqlite:///{tmp_path}/study.db"
    opened = open_storage(
        url if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    )
    yield opened
    opened.close()


def presence(storage: Storage, name: str) -> Presence:
    return Presence(
        storage.engine, Patience(), "cpu", {"mqasearch": "1"}, worker=name, beat_seconds=0.1
    )


def test_a_worker_is_listed_while_it_works(storage: Storage) -> None:
    assert list_workers(storage.engine) == []
    with presence(storage, "b") as mine, presence(storage, "a"):
        mine.start_trial("demo.greedy", 7)
        mine.end_trial()
        mine.start_trial("demo.greedy", 9)
        time.sleep(0.5)
        first, second = list_workers(storage.engine)
        assert (first.worker, first.trial, first.trials_done) == ("a", None, 0)
        assert (second.worker, second.study, second.trial) == ("b", "demo.greedy", 9)
        assert second.trials_done == 1
        assert (second.host, second.pid) == (socket.gethostname(), os.getpid())
        assert second.versions == {"mqasearch": "1"}
        assert second.alive
        assert 0 <= second.silent <= second.seconds < 60
    assert list_workers(storage.engine) == []


def test_the_killed_are_listed_last_and_in_the_end_forgotten(storage: Storage) -> None:
    killed = presence(storage, "a")
    killed.patience(lambda: killed._transact(killed._register))

    def silence(seconds: float) -> None:
        with storage.engine.begin() as connection:
            connection.execute(
                text("UPDATE mqasearch_worker SET seen_at = seen_at - :s WHERE worker = 'a'"),
                {"s": seconds},
            )

    silence(SILENT_SECONDS)
    with presence(storage, "b"):
        alive = {worker.worker: worker.alive for worker in list_workers(storage.engine)}
        assert alive == {"b": True, "a": False}
        assert list(alive) == ["b", "a"]
    silence(25 * 3600)
    with presence(storage, "c"):
        assert [worker.worker for worker in list_workers(storage.engine)] == ["c"]


def test_a_worker_is_listed_again_after_an_outage_in_which_it_was_forgotten(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    beats = []

    def patience(operation: Callable[[], object]) -> object:
        beats.append(1)
        if len(beats) == 2:  # the first one registers
            raise DatabaseAwayError("away")
        return operation()

    worker = presence(storage, "a")
    monkeypatch.setattr(worker, "patience", patience)
    with worker:
        worker.start_trial("demo.greedy", 7)
        with storage.engine.begin() as connection:
            connection.execute(text("DELETE FROM mqasearch_worker"))
        deadline = time.monotonic() + 30
        while not (found := list_workers(storage.engine)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert [(row.worker, row.trial) for row in found] == [("a", 7)]
    assert list_workers(storage.engine) == []
