"""Studies that cannot be scored: they end, say why, and score the original once."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from optuna.trial import TrialState
from studies_on_fake import run_study, scoring_of, spec_of, storage_in, studies_of

from mqasearch.creation import create_studies
from mqasearch.errors import ScoreError
from mqasearch.mask import KVHeads
from mqasearch.record import Storage
from mqasearch.score import Documents, Score, TaskSpec
from mqasearch.scoring import FakeScorer
from mqasearch.study.comparison_rows import compare, finished
from mqasearch.study.selection import find_studies
from mqasearch.study.status import STATUS_HEADERS, endings, study_rows
from mqasearch.worker import Limits, Watcher, work_with


class Diverging(FakeScorer):
    """Has no score where ``diverges`` says so, and notes what was asked for."""

    def __init__(self, n_layers: int = 6) -> None:
        super().__init__(n_layers)
        self.asked: list[KVHeads] = []

    def diverges(self, converted: tuple[int, ...]) -> bool:
        return True

    def score(self, kv_heads: KVHeads, task: TaskSpec, documents: Documents) -> Score:
        self.asked.append(kv_heads)
        most = self.shape.n_kv_heads
        if self.diverges(tuple(n for n, heads in enumerate(kv_heads) if heads < most)):
            raise ScoreError(f"{task.name}: a log-likelihood is nan")
        return super().score(kv_heads, task, documents)


class AllMasks(Diverging):
    def diverges(self, converted: tuple[int, ...]) -> bool:
        return bool(converted)


class Original(Diverging):
    def diverges(self, converted: tuple[int, ...]) -> bool:
        return not converted


def lefts(storage: Storage) -> list[int]:
    rows = [dict(zip(STATUS_HEADERS, row, strict=True)) for row in study_rows(storage.optuna)]
    return [row["left"] for row in rows]


def n_failed(storage: Storage) -> list[int]:
    return [len(s.get_trials(states=(TrialState.FAIL,))) for s in studies_of(storage)]


@pytest.mark.parametrize("kind", [Original, Diverging])
def test_without_a_score_of_the_original_every_study_ends_and_says_why(
    storage: Storage, kind: type[Diverging]
) -> None:
    spec = spec_of(enqueue={"first": [0], "last": [5]})
    scorer = kind()
    run_study(storage, spec, scorer)
    assert scorer.asked == [(4,) * 6]
    assert n_failed(storage) == [1] * 5
    assert lefts(storage) == [0] * 5
    assert not any(finished(study) for study in studies_of(storage))
    (line,) = endings(storage.optuna, "s")
    assert "\n" not in line
    for word in ("original", "kl of hellaswag", "a log-likelihood is nan", "another dtype"):
        assert word in line


def test_whoever_comes_next_scores_nothing_of_a_study_whose_original_has_no_score(
    storage: Storage,
) -> None:
    run_study(storage, spec_of(), Original(), n_trials=1)
    lines = endings(storage.optuna)
    for name in ("s.greedy", "s"):
        scorer = Original()
        studies = find_studies(storage.optuna, name)
        work_with(scoring_of(scorer), storage, studies, Limits(), Watcher())
        assert scorer.asked == []
        assert endings(storage.optuna, "s") == lines
    assert lefts(storage) == [0] * 4


def test_two_workers_at_once_score_the_original_once_each_and_agree(tmp_path: Path) -> None:
    opened = [storage_in(tmp_path), storage_in(tmp_path)]
    scorers = [Original(), Original()]
    create_studies(opened[0].optuna, spec_of(), scorers[0].shape)
    both = threading.Barrier(2)

    def work(storage: Storage, scorer: Original) -> list[str]:
        both.wait()
        work_with(
            scoring_of(scorer), storage, find_studies(storage.optuna, "s"), Limits(), Watcher()
        )
        return endings(storage.optuna, "s")

    with ThreadPoolExecutor(2) as pool:
        lines = [*pool.map(work, opened, scorers)]
    assert all(scorer.asked.count((4,) * 6) <= 1 for scorer in scorers)
    assert all(len(scorer.asked) <= 2 for scorer in scorers)
    assert lines[0] == lines[1] != []
    assert lefts(opened[0]) == [0] * 4
    for storage in opened:
        storage.close()


@pytest.mark.parametrize(
    "selector", ["random", "tpe", "sensitivity", "greedy", "gp", "alternating", "exhaustive"]
)
def test_a_study_whose_masks_cannot_be_scored_ends_and_says_why(
    storage: Storage, selector: str
) -> None:
    n_trials = {"n_trials": 19} if selector in ("random", "tpe") else {}
    spec = spec_of(selectors=[{"name": selector, **n_trials}], budget=3)
    run_study(storage, spec, AllMasks(6))
    assert lefts(storage) == [0]
    assert n_failed(storage)[0] <= (11 if selector == "exhaustive" else 10)
    (line,) = endings(storage.optuna)
    assert f"'s.{selector}'" in line
    assert "a log-likelihood is nan" in line
    again = AllMasks(6)
    run_study(storage, spec, again)
    assert again.asked == []
    assert endings(storage.optuna) == [line]


@pytest.mark.parametrize(("n_trials", "n_invalid"), [(15, 15 - 1 - 6), (40, 5 + 10)])
def test_the_rest_of_a_comparison_goes_on_beside_a_study_that_ends(
    storage: Storage, n_trials: int, n_invalid: int
) -> None:
    """Of the random masks five fail, six layers alone do not, and then ten masks fail in a row."""

    class Deep(Diverging):
        def diverges(self, converted: tuple[int, ...]) -> bool:
            return len(converted) > 1

    random = {"name": "random", "n_trials": n_trials}
    spec = spec_of(selectors=[random], enqueue={"good": [3], "bad": [0, 1]})
    run_study(storage, spec, Deep())
    assert n_failed(storage) == [n_invalid, 1]
    assert [row.selector for row in compare(studies_of(storage))] == ["random", "original", "good"]
    (line,) = endings(storage.optuna)
    assert "study 's.random' ended early" in line


@pytest.mark.parametrize(
    ("bad", "selectors"),
    [
        ((0,), ["sensitivity", "gp", {"name": "tpe", "n_trials": 15}]),
        ((0, 1, 2, 3, 4, 5), ["sensitivity", "greedy"]),
    ],
)
def test_a_study_goes_on_where_some_layers_diverge(
    storage: Storage, bad: tuple[int, ...], selectors: list[object]
) -> None:
    scorer = FakeScorer(9, diverging=bad)
    run_study(storage, spec_of(selectors=selectors, budget=2), scorer)
    for row in compare(studies_of(storage)):
        assert row.mask is not None
        assert not any(row.mask[layer] == "1" for layer in bad)
    assert endings(storage.optuna) == []


@pytest.mark.parametrize("budget", [7, 9])
@pytest.mark.parametrize("bad", [(0, 1, 2), (1, 4, 9)])
@pytest.mark.parametrize(
    "selector",
    ["sensitivity", "greedy", "gp", *({"name": n, "n_trials": 40} for n in ("tpe", "random"))],
)
def test_a_study_with_few_masks_to_score_among_many_finds_them(
    storage: Storage, bad: tuple[int, ...], budget: int, selector: object
) -> None:
    scorer = FakeScorer(12, diverging=bad)
    run_study(storage, spec_of(selectors=[selector], budget=budget), scorer)
    (row,) = compare(studies_of(storage))
    assert row.mask is not None
    assert not any(row.mask[layer] == "1" for layer in bad)
    assert row.n_failed <= 5 + len(bad) + 2  # before any layer is tried alone; alone; chance
    assert endings(storage.optuna) == []


def test_one_layer_at_fault_does_not_end_a_study_of_all_masks(storage: Storage) -> None:
    run_study(storage, spec_of(selectors=["exhaustive"]), FakeScorer(6, diverging=(0,)))
    (row,) = compare(studies_of(storage))
    assert (row.n_trials, row.n_failed) == (1 + 10, 10)
    assert endings(storage.optuna) == []


def test_masks_enqueued_by_name_fail_one_by_one(storage: Storage) -> None:
    masks = {f"with-{layer}": [0, layer] for layer in range(1, 12)} | {"good": [3]}
    run_study(storage, spec_of(selectors=[], enqueue=masks), FakeScorer(12, diverging=(0,)))
    assert [row.selector for row in compare(studies_of(storage))] == ["original", "good"]
    assert n_failed(storage) == [11]
    assert endings(storage.optuna) == []
