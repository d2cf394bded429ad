"""Trials that run out of memory, on the fake scorer."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
import torch
from optuna.trial import TrialState
from sqlalchemy import func, select
from studies_on_fake import run_study, scoring_of, spec_of, storage_in, studies_of

from mqasearch.creation import create_studies
from mqasearch.database import ClaimRow
from mqasearch.mask import KVHeads
from mqasearch.record import Storage
from mqasearch.score import Documents, Score, TaskSpec
from mqasearch.scoring import FakeScorer
from mqasearch.selectors import INVALID_KEY
from mqasearch.study import (
    Outlook,
    best_trial,
    compare,
    endings,
    find_studies,
    finished,
    open_selections,
    out_of_memory,
)
from mqasearch.study.out_of_memory import ATTEMPTS
from mqasearch.worker.run import Limits, Watcher, work_with

SELECTORS = ["sensitivity", "greedy", "alternating"]
"""Whose masks do not depend on the numbers of their trials, which a failed trial shifts."""


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that were slept for memory's sake, none of them in fact."""
    slept: list[float] = []
    monkeypatch.setattr(out_of_memory, "time", SimpleNamespace(sleep=slept.append))
    return slept


class ShortOfMemory(FakeScorer):
    """Fails a mask on its first attempts.

    Args:
        n_failures: KV heads → attempts that fail.
        error: makes what is raised.
    """

    def __init__(
        self,
        n_failures: Callable[[KVHeads], int],
        error: Callable[[], Exception] = lambda: torch.OutOfMemoryError("CUDA out of memory."),
    ) -> None:
        super().__init__(5)
        self.n_failures = n_failures
        self.error = error
        self.attempts: Counter[KVHeads] = Counter()

    def score(self, kv_heads: KVHeads, task: TaskSpec, documents: Documents) -> Score:
        if documents.split == "search":
            self.attempts[kv_heads] += 1
            if self.attempts[kv_heads] <= self.n_failures(kv_heads):
                raise self.error()
        return super().score(kv_heads, task, documents)


def outcome(storage: Storage) -> list[tuple[set[str], str | None]]:
    """Of every study the masks that have a score, and the best of them."""
    found = []
    for study in studies_of(storage):
        best = best_trial(study)
        masks = {row.facts.mask for row in finished(study)}
        found.append((masks, None if best is None else best.facts.mask))
    return found


def failed(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    return study.get_trials(states=(TrialState.FAIL,))


@pytest.mark.parametrize("n_failures", range(1, ATTEMPTS))
@pytest.mark.parametrize(
    "error",
    [
        lambda: torch.OutOfMemoryError("CUDA out of memory."),
        lambda: RuntimeError("MPS backend out of memory"),
        MemoryError,
    ],
)
def test_masks_that_run_out_of_memory_for_a_while_change_no_result(
    tmp_path: Path, storage: Storage, error: Callable[[], Exception], n_failures: int
) -> None:
    spec = spec_of(selectors=SELECTORS, enqueue={"first": [0]})
    run_study(storage, spec, ShortOfMemory(lambda _: n_failures, error))
    (tmp_path / "calm").mkdir()
    calm = storage_in(tmp_path / "calm")
    run_study(calm, spec, FakeScorer(5))
    assert outcome(storage) == outcome(calm)
    ours, theirs = (compare(studies_of(one)) for one in (storage, calm))
    assert {(row.selector, row.mask, row.delta) for row in ours} == {
        (row.selector, row.mask, row.delta) for row in theirs
    }
    for study in studies_of(storage):
        assert all(INVALID_KEY not in trial.user_attrs for trial in study.trials)
    calm.close()


def test_a_mask_that_nobody_has_the_memory_for_ends_invalid_and_so_does_the_study(
    storage: Storage, pauses: list[float]
) -> None:
    hopeless = (4, 4, 1, 4, 4)
    scorer = ShortOfMemory(lambda kv_heads: 99 * (kv_heads == hopeless))
    run_study(storage, spec_of(selectors=["greedy"]), scorer)
    (study,) = studies_of(storage)
    (last,) = failed(study)
    assert last.user_attrs[INVALID_KEY] == f"out of memory, {ATTEMPTS} times"
    assert scorer.attempts[hopeless] == ATTEMPTS
    (selection,) = open_selections(storage.optuna, find_studies(storage.optuna, "s"))
    assert selection.outlook() == Outlook.DONE
    assert best_trial(study) is not None
    waited = [seconds for seconds in pauses if seconds]
    assert len(waited) == ATTEMPTS - 1
    assert waited == sorted(set(waited))


@pytest.mark.parametrize("wanted", ["original", "masks"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_study_that_ends_for_want_of_memory_says_what_takes_less(
    storage: Storage, wanted: str, dtype: str
) -> None:
    scorer = ShortOfMemory(lambda kv_heads: 99 * ((kv_heads == (4,) * 5) == (wanted == "original")))
    spec = spec_of(selectors=["greedy"])
    create_studies(storage.optuna, spec, scorer.shape)
    scoring = replace(scoring_of(scorer), dtype=dtype)
    studies = find_studies(storage.optuna, "s")
    work_with(scoring, storage, studies, Limits(), Watcher())
    (line,) = endings(storage.optuna, "s")
    for words in (
        f"out of memory, {ATTEMPTS} times",
        "more memory",
        "fewer workers",
        "another name",
    ):
        assert words in line
    assert "another dtype" not in line  # a larger one would not do
    assert ("bfloat16" in line) == (dtype == "float32")
    assert "\n" not in line


def test_a_number_of_trials_is_kept(storage: Storage) -> None:
    scorer = ShortOfMemory(lambda kv_heads: 1)
    run_study(storage, spec_of(selectors=[{"name": "random", "n_trials": 5}]), scorer)
    (study,) = studies_of(storage)
    assert len(finished(study)) == 5


def test_a_named_mask_keeps_its_name(storage: Storage) -> None:
    scorer = ShortOfMemory(lambda kv_heads: int(kv_heads == (4,) * 5))
    run_study(storage, spec_of(selectors=[], enqueue={"first": [0]}), scorer)
    (study,) = studies_of(storage)
    assert failed(study) == []
    assert {row.selector for row in compare([study])} == {"original", "first"}


def test_no_claim_is_left_behind(storage: Storage) -> None:
    claims: list[int] = []

    def count(*_: object) -> None:
        with storage.engine.connect() as connection:
            claims.append(connection.execute(select(func.count(ClaimRow.digest))).scalar_one())

    scorer = ShortOfMemory(lambda _: 99)
    watcher = Watcher(on_trial=count)
    run_study(storage, spec_of(selectors=["greedy"]), scorer, n_trials=1, watcher=watcher)
    assert claims == [0]


def test_an_error_about_something_else_still_ends_the_worker(storage: Storage) -> None:
    scorer = ShortOfMemory(lambda _: 1, lambda: RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes"):
        run_study(storage, spec_of(selectors=["greedy"]), scorer)
