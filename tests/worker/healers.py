"""Healers for tests, which count what they heal, and studies that use them."""

import time
from typing import Any

from mqasearch.creation import create_studies
from mqasearch.heal_recipe import Recipe
from mqasearch.mask import KVHeads
from mqasearch.record import Storage
from mqasearch.scoring import FakeScorer, Scorer, Scoring
from mqasearch.scoring.healers import FakeHealer
from mqasearch.study import find_studies
from mqasearch.worker.run import Limits, Watcher, work_with
from tests.studies_on_fake import spec_of

RECIPE = Recipe(20)


class CountedHealer(FakeHealer):
    """Notes what it heals, and is slow enough for others to ask meanwhile."""

    runs: list[KVHeads]
    seconds: float = 0.0

    def healed(self, kv_heads: KVHeads) -> tuple[Scorer, dict[str, float]]:
        self.runs.append(kv_heads)
        time.sleep(self.seconds)
        return super().healed(kv_heads)


def counted(scorer: FakeScorer, seconds: float = 0.0) -> CountedHealer:
    healer = CountedHealer(scorer, RECIPE)
    object.__setattr__(healer, "runs", [])
    object.__setattr__(healer, "seconds", seconds)
    return healer


def run(storage: Storage, healer: FakeHealer | None = None, **changes: Any) -> FakeHealer:
    scorer = FakeScorer()
    healer = healer or counted(scorer)
    create_studies(storage.optuna, spec_of(heal=20, **changes), scorer.shape)
    found = Scoring(scorer, scorer.model, "float32", "mean", "", "cpu", healer)
    work_with(found, storage, find_studies(storage.optuna, "s"), Limits(), Watcher())
    return healer
