"""Studies on the fake scorer, for tests of the rooms above the scorer."""

from pathlib import Path
from typing import Any

import optuna

from mqasearch.creation import create_studies
from mqasearch.record import Storage, open_storage
from mqasearch.scoring import FakeScorer, Scoring
from mqasearch.spec import StudySpec, parse_spec
from mqasearch.study import find_studies
from mqasearch.worker import Limits, Watcher, work_with

QUIET = Watcher()


def spec_of(**changes: Any) -> StudySpec:
    data = {
        "name": "s",
        "model": "fake",
        "budget": 3,
        "tasks": ["hellaswag"],
        "documents": {"search": 40, "confirmation": 80},
        "selectors": ["sensitivity", "greedy", "alternating", {"name": "random", "n_trials": 8}],
    }
    return parse_spec(data | changes, "s.yaml")


def storage_in(folder: Path) -> Storage:
    return open_storage(f"sqlite:///{folder / 'studies.db'}")


def scoring_of(scorer: FakeScorer) -> Scoring:
    return Scoring(scorer, scorer.model, "float32", "mean", "", "cpu")


def run_study(
    storage: Storage,
    spec: StudySpec,
    scorer: FakeScorer,
    *,
    n_trials: int | None = None,
    watcher: Watcher = QUIET,
) -> int:
    create_studies(storage.optuna, spec, scorer.shape)
    studies = find_studies(storage.optuna, spec.name)
    return work_with(scoring_of(scorer), storage, studies, Limits(n_trials), watcher)


def studies_of(storage: Storage, name: str = "s") -> list[optuna.Study]:
    return [
        optuna.load_study(study_name=study, storage=storage.optuna)
        for study in find_studies(storage.optuna, name)
    ]
