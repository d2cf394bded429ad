"""Workers that share the healing of finalists."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mqasearch.evaluation import Evaluator
from mqasearch.mask import KVHeads, LayerMask
from mqasearch.record import Storage, open_storage
from mqasearch.score import Documents, Score, ScoreKey, TaskSpec
from mqasearch.scores import Claims, ScoreStore
from mqasearch.scoring import FakeScorer, Scorer
from mqasearch.scoring.healers import FakeHealer
from tests.worker.healers import RECIPE, counted


@pytest.fixture(params=["sqlite", "postgresql"])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Storage]]:
    """Opens a database as another process would."""
    url = f"sqlite:///{tmp_path}/study.db"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres_url")
    opened: list[Storage] = []

    def open_one() -> Storage:
        opened.append(open_storage(url))
        return opened[-1]

    yield open_one
    for each in opened:
        each.close()


def evaluator_on(storage: Storage, scorer: FakeScorer, **settings: Any) -> Evaluator:
    claims = Claims(storage.engine, ScoreStore(storage.engine), **settings)
    return Evaluator(scorer, claims, [TaskSpec("hellaswag"), TaskSpec("piqa")])


def test_two_workers_never_heal_the_same_finalist(shared: Callable[[], Storage]) -> None:
    scorer = FakeScorer()
    healer = counted(scorer, seconds=0.3)
    mask, ready = LayerMask.of([1, 2], 12), threading.Barrier(3)
    evaluators = [evaluator_on(shared(), scorer) for _ in range(3)]

    def confirm(evaluator: Evaluator) -> Any:
        ready.wait()
        return evaluator.confirm_healed(mask, 40, healer)

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(confirm, evaluators))
    assert len(healer.runs) == 1
    assert found[0] == found[1] == found[2]
    assert set(found[0][0]) == {"hellaswag", "piqa"}


def test_a_finalist_of_a_worker_that_died_is_gone_on_with(
    shared: Callable[[], Storage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mqasearch.scores.claims.seconds_started", lambda: 0.0)
    scorer = FakeScorer()
    mask = LayerMask.of([1, 2], 12)

    class Dead(BaseException):
        pass

    class Dying(FakeHealer):
        def healed(self, kv_heads: KVHeads) -> tuple[Scorer, dict[str, float]]:
            raise Dead

    first = evaluator_on(shared(), scorer, lease_seconds=1.0)
    monkeypatch.setattr(first.claims, "release", lambda digest: None)  # nothing is tidied up
    with pytest.raises(Dead):
        first.confirm_healed(mask, 40, Dying(scorer, RECIPE))
    healer = counted(scorer)
    began = time.monotonic()
    scores, _ = evaluator_on(shared(), scorer).confirm_healed(mask, 40, healer)
    assert 0.5 < time.monotonic() - began < 30
    assert len(healer.runs) == 1
    assert set(scores) == {"hellaswag", "piqa"}


def test_each_task_has_its_own_documents_in_the_key(shared: Callable[[], Storage]) -> None:
    """The first task may have too few documents for a larger limit to make a difference."""

    class Small(FakeScorer):
        def key(self, kv_heads: KVHeads, task: TaskSpec, documents: Documents) -> ScoreKey:
            most = min(documents.limit or 60, 60) if task.name == "hellaswag" else documents.limit
            return super().key(kv_heads, task, replace(documents, limit=most))

    scorer = Small()
    evaluator, healer = evaluator_on(shared(), scorer), counted(scorer)
    mask = LayerMask.of([1, 2], 12)
    for limit in (60, 70, 70):
        scores, _ = evaluator.confirm_healed(mask, limit, healer)
        assert scores["piqa"].n_docs == limit
    assert len(healer.runs) == 2


def test_scores_are_all_of_one_healing(shared: Callable[[], Storage]) -> None:
    """A worker that dies between two tasks leaves nothing of its weights behind."""

    class Dead(BaseException):
        pass

    class Fragile(FakeScorer):
        def score(self, kv_heads: KVHeads, task: TaskSpec, documents: Documents) -> Score:
            if task.name == "piqa":
                raise Dead
            return super().score(kv_heads, task, documents)

    class Half(FakeHealer):
        def healed(self, kv_heads: KVHeads) -> tuple[Scorer, dict[str, float]]:
            return Fragile(), super().healed(kv_heads)[1]  # not healed at all

    scorer = FakeScorer()
    evaluator, mask = evaluator_on(shared(), scorer), LayerMask.of([1, 2], 12)
    with pytest.raises(Dead):
        evaluator.confirm_healed(mask, 40, Half(scorer, RECIPE))
    scores, _ = evaluator.confirm_healed(mask, 40, counted(scorer))
    plain = evaluator.confirm(mask, 40).scores
    for task, score in scores.items():
        assert score.values["kl"] < plain[task].values["kl"]


def test_workers_heal_different_finalists(storage: Storage) -> None:
    scorer = FakeScorer()
    healer = counted(scorer, seconds=0.5)
    masks = [LayerMask.of([layer], 12) for layer in (1, 2)]
    one, two = evaluator_on(storage, scorer), evaluator_on(storage, scorer)
    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(one.confirm_healed, masks[0], 40, healer)
        while not healer.runs:
            time.sleep(0.01)
        assert two.is_healing(masks[0], 40, healer)
        assert not one.is_healing(masks[0], 40, healer)
        assert not two.is_healing(masks[1], 40, healer)
        busy.result()
    assert not two.is_healing(masks[0], 40, healer)
