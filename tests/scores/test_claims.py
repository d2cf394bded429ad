"""Laws of claims: one worker computes, the others wait, nobody waits for the dead."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import text

from mqasearch.errors import ScoreError
from mqasearch.record import Storage, open_storage
from mqasearch.score import Score, ScoreKey
from mqasearch.scores.claims import Claims
from mqasearch.scores.store import ScoreStore

KEY = ScoreKey(
    model="f" * 64,
    tokenizer="t" * 64,
    dtype="float32",
    merge="mean",
    calibration="",
    kv_heads=(3, 1, 3),
    task="hellaswag",
    task_version="1.0",
    num_fewshot=0,
    documents="d" * 64,
    seed=7,
    lm_eval="0.4.13",
    code="c" * 64,
)
DIGEST = KEY.digest()
SCORE = Score({"acc": 0.5}, {"acc": 0.1}, 2, 0.1, {"acc": (0.0, 1.0)})


@pytest.fixture(params=["sqlite", "postgresql"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Storage]:
    url = f"sqlite:///{tmp_path}/study.db"
    opened = open_storage(
        url if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    )
    yield opened
    opened.close()


@pytest.fixture
def worker(storage: Storage) -> Callable[..., Claims]:
    return lambda **settings: Claims(storage.engine, ScoreStore(storage.engine), **settings)


@pytest.fixture(autouse=True)
def _old_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server has been up for longer than any lease."""
    monkeypatch.setattr("mqasearch.scores.claims.seconds_started", lambda: 0.0)


def n_claims(storage: Storage) -> int:
    with storage.engine.connect() as connection:
        return int(connection.execute(text("SELECT count(*) FROM mqasearch_claim")).scalar_one())


def test_one_holds_a_claim_until_it_is_released(worker: Callable[..., Claims]) -> None:
    mine, theirs = worker(), worker()
    assert mine.claim(DIGEST)
    assert mine.claim(DIGEST)  # an answer may have been lost
    assert not theirs.claim(DIGEST)
    assert theirs.claim("another")
    theirs.release(DIGEST)
    assert not theirs.claim(DIGEST)
    mine.release(DIGEST)
    assert theirs.claim(DIGEST)


def test_the_claim_of_the_dead_expires(worker: Callable[..., Claims]) -> None:
    dead, heir = worker(lease_seconds=0.3), worker()
    assert dead.claim(DIGEST)
    assert not heir.claim(DIGEST)
    time.sleep(0.4)
    assert heir.claim(DIGEST)
    dead.release(DIGEST)
    assert not worker().claim(DIGEST)


def test_after_a_restart_of_the_server_leases_begin_again(
    worker: Callable[..., Claims], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert worker(lease_seconds=0.05).claim(DIGEST)
    time.sleep(0.1)
    monkeypatch.setattr("mqasearch.scores.claims.seconds_started", time.time)
    assert not worker().claim(DIGEST)


def test_everybody_at_once_gets_one_computation(
    storage: Storage, worker: Callable[..., Claims]
) -> None:
    computed: list[int] = []
    together = threading.Barrier(6)

    def compute() -> Score:
        computed.append(1)
        time.sleep(0.3)
        return SCORE

    def ask() -> tuple[Score, bool]:
        claims = worker()
        together.wait()
        return claims.get_or_score(KEY, compute)

    with ThreadPoolExecutor(6) as pool:
        answers = [future.result() for future in [pool.submit(ask) for _ in range(6)]]
    assert len(computed) == 1
    assert [score for score, _ in answers] == [SCORE] * 6
    assert [here for _, here in answers].count(True) == 1
    assert n_claims(storage) == 0


def test_a_claim_is_renewed_for_as_long_as_it_takes(worker: Callable[..., Claims]) -> None:
    claims, others = worker(lease_seconds=0.3), worker()
    tries: list[bool] = []

    def compute() -> Score:
        for _ in range(8):
            time.sleep(0.15)
            tries.append(others.claim(DIGEST))
        return SCORE

    assert claims.get_or_score(KEY, compute) == (SCORE, True)
    assert not any(tries)


@pytest.mark.parametrize("error", [ScoreError("not a number"), KeyboardInterrupt()])
def test_whoever_fails_gives_way(
    storage: Storage, worker: Callable[..., Claims], error: BaseException
) -> None:
    def fail() -> Score:
        raise error

    with pytest.raises(type(error)):
        worker().get_or_score(KEY, fail)
    assert n_claims(storage) == 0
    assert worker().get_or_score(KEY, lambda: SCORE) == (SCORE, True)


def test_what_is_scored_is_not_claimed(storage: Storage, worker: Callable[..., Claims]) -> None:
    ScoreStore(storage.engine).put(KEY, SCORE)
    assert worker().get_or_score(KEY, pytest.fail) == (SCORE, False)
    other = replace(KEY, seed=8)
    assert worker().get_or_score(other, lambda: SCORE) == (SCORE, True)
    assert n_claims(storage) == 0
