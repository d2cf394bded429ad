"""The verdict: how many layers can be converted without losing more than the tolerance.

The best mask of each size is chosen by its search value alone, so that its held-out documents are
as unbiased as if it had been the only mask. Sizes are tested in a fixed order, the smallest
conversion first, each at 5 %. Testing stops at the first size that fails, which keeps the chance of
any false claim at 5 % (Maurer, Hothorn & Lehmacher 1995). If there are several tolerances, all must
hold, and each is tested at 5 %; that needs no correction either (intersection–union test, Berger
1982).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import optuna

from mqasearch.mask import KVHeads
from mqasearch.record import (
    ENQUEUED,
    HEALED,
    NO_MASK,
    StudyFacts,
    confirmation,
    study_facts,
    tolerance_of,
    unconfirmed,
)
from mqasearch.statistics import NonInferiority, first_in_order
from mqasearch.study.comparison_rows import FinishedTrial, best_trial
from mqasearch.tolerance import ToleranceEntry

Result = Literal["within", "not shown", "not tested"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The test of one tolerance on one task.

    Attributes:
        task: lm-eval's name of the task.
        tolerance: what may be lost.
        loss: the test of the mask's loss against the margin.
        higher_is_better: direction of the metric.
    """

    task: str
    tolerance: ToleranceEntry
    loss: NonInferiority
    higher_is_better: bool

    @property
    def difference(self) -> float:
        """The mask's value − the original's value, in points."""
        return 100 * (-self.loss.loss if self.higher_is_better else self.loss.loss)

    @property
    def interval(self) -> tuple[float, float]:
        """Two-sided 90 % interval of ``difference``, in points."""
        low, high = (100 * end for end in self.loss.ci90)
        return (-high, -low) if self.higher_is_better else (low, high)


@dataclass(frozen=True, slots=True)
class Size:
    """The best mask of one size.

    Attributes:
        comparison: name of the comparison that the mask is from.
        selector: name of the selector that found the mask.
        trial_number: number of the mask's trial.
        mask: the mask as a string of digits, one level per layer.
        n_converted: number of converted layers.
        n_layers: number of the model's layers.
        kv_heads: KV heads per layer.
        kv_bytes_saved: share of the KV cache that the mask saves.
        tests: a test of every tolerance on every task that has its metric.
        missing: metrics of tolerances that could not be tested, because no task has the metric with
            a value for each document.
        is_healed: whether the tests are of the mask after healing.
        result: sizes after the first one that is ``not shown`` to be within the tolerance are
            ``not tested``.
    """

    comparison: str
    selector: str
    trial_number: int
    mask: str
    n_converted: int
    n_layers: int
    kv_heads: KVHeads
    kv_bytes_saved: float
    tests: tuple[Outcome, ...]
    missing: tuple[str, ...] = ()
    result: Result = "not tested"
    is_healed: bool = False

    @property
    def holds(self) -> bool:
        """Whether the mask is shown to be within every tolerance."""
        return not self.missing and all(test.loss.shown for test in self.tests)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict on a study file's tolerance.

    Attributes:
        tolerance: what may be lost.
        late: whether the tolerance was given when held-out results were already known.
        sizes: the sizes that are confirmed, the smallest conversion first.
        n_sizes: number of sizes when all are confirmed.
    """

    tolerance: tuple[ToleranceEntry, ...]
    late: bool
    sizes: tuple[Size, ...]
    n_sizes: int

    @property
    def is_final(self) -> bool:
        """Whether every size is confirmed."""
        return len(self.sizes) == self.n_sizes

    @property
    def chosen(self) -> Size | None:
        """The largest size that is shown to be within the tolerance."""
        within = [size for size in self.sizes if size.result == "within"]
        return within[-1] if within else None


def verdict(studies: Iterable[optuna.Study]) -> Verdict | None:
    """Read the verdict from the stored confirmations; nothing is scored.

    Args:
        studies: all studies of one study file, in any order.

    Returns:
        The verdict; None without a tolerance.
    """
    rows = [
        (facts, study)
        for study in studies
        if (facts := study_facts(study.user_attrs)) is not None and facts.selector != ENQUEUED
    ]
    tolerance, late = tolerance_of(rows[0][1]) if rows else ([], False)
    if not tolerance:
        return None
    comparisons = dict.fromkeys(facts.comparison for facts, _ in rows)
    of_each = [
        [(facts, study) for facts, study in rows if facts.comparison == name]
        for name in comparisons
    ]
    sizes = [size for of in of_each if (size := _size(of, tolerance)) is not None]
    sizes.sort(key=lambda size: (size.kv_bytes_saved, size.n_converted))
    if len(sizes) == len(comparisons):
        sizes = _in_order(sizes)
    return Verdict(tuple(tolerance), late, tuple(sizes), len(comparisons))


def _in_order(sizes: Sequence[Size]) -> list[Size]:
    """Each size with its result."""
    n_within = first_in_order(size.holds for size in sizes)
    results: list[Result] = ["within"] * n_within
    results.append("not shown")
    results += [size.result for size in sizes[len(results) :]]
    return [replace(size, result=one) for size, one in zip(sizes, results, strict=False)]


def _size(
    rows: Sequence[tuple[StudyFacts, optuna.Study]], tolerance: Sequence[ToleranceEntry]
) -> Size | None:
    """The best mask of one comparison's selectors; None until all of them are confirmed."""
    found: list[tuple[FinishedTrial, StudyFacts, dict[str, Any]]] = []
    for facts, study in rows:
        best, held_out = best_trial(study), confirmation(study.user_attrs)
        if best is None and _has_failed(study):
            continue
        if best is None or held_out is None or held_out["trial_number"] != best.number:
            return None
        if facts.study_spec.heal and "healed" not in held_out and not _not_healed(study, best):
            return None
        found.append((best, facts, held_out))
    if not found:
        return None
    sign = -1.0 if found[0][1].direction == "maximize" else 1.0
    best, facts, held_out = min(found, key=lambda row: sign * row[0].facts.value)
    healed = held_out.get("healed")
    tasks = held_out["tasks"] if healed is None else healed["tasks"]
    tests = tuple(
        _outcome(task, entry, metrics[entry.metric])
        for entry in tolerance
        for task, metrics in tasks.items()
        if entry.covers(task) and _can_be_tested(metrics.get(entry.metric, {}))
    )
    tested = {test.tolerance for test in tests}
    return Size(
        comparison=facts.comparison,
        selector=facts.selector,
        trial_number=best.number,
        mask=best.facts.mask,
        n_converted=best.facts.n_converted,
        n_layers=facts.n_layers,
        kv_heads=facts.kv_heads(best.facts.mask),
        kv_bytes_saved=1 - best.facts.kv_bytes_per_token / facts.original_kv_bytes(best.facts),
        tests=tests,
        missing=tuple(entry.metric for entry in tolerance if entry not in tested),
        is_healed=healed is not None,
    )


def _can_be_tested(row: dict[str, Any]) -> bool:
    """Whether a metric's row has an interval, which needs values per document, and a direction."""
    return "ci90" in row.get("delta", {}) and row.get("higher_is_better") is not None


def _not_healed(study: optuna.Study, best: FinishedTrial) -> bool:
    """Whether healing the best mask has failed, so that the unhealed mask counts."""
    row = unconfirmed(study.user_attrs)
    return row is not None and (row["trial_number"], row["whose"]) == (best.number, HEALED)


def _has_failed(study: optuna.Study) -> bool:
    """Whether the search has ended and no mask at the budget has a score."""
    row = unconfirmed(study.user_attrs)
    return row is not None and row["whose"] == NO_MASK


def _outcome(task: str, tolerance: ToleranceEntry, row: dict[str, Any]) -> Outcome:
    delta, rises = row["delta"], row["higher_is_better"]
    low, high = delta["ci90"]
    loss = NonInferiority(
        loss=-delta["value"] if rises else delta["value"],
        ci90=(-high, -low) if rises else (low, high),
        stderr=delta["stderr"],
        n_docs=delta["n_docs"],
        margin=tolerance.margin,
    )
    return Outcome(task, tolerance, loss, rises)
