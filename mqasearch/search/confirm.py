"""Held-out evidence: the best mask of each selector against the original model.

The search picks the mask that looks best on the documents it saw, so that its value is biased
(winner's curse). The confirmation documents were never seen; the difference is paired by document.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from mqasearch.errors import UserError
from mqasearch.evaluation.metrics import higher_is_better
from mqasearch.evaluation.statistics import paired_difference
from mqasearch.mask import LayerMask
from mqasearch.score import HIGHER_IS_BETTER, Score
from mqasearch.search.attributes import ENQUEUED, confirmation, set_confirmation
from mqasearch.search.compare import best_trial
from mqasearch.search.evaluator import Evaluator
from mqasearch.search.selection import Selection
from mqasearch.search.uncertainty import stderrs

STATISTICS = 2
"""Of what is written: raised when a field is added, so that older results are computed again, from
scores that are there."""


def confirm(
    selections: Sequence[Selection],
    evaluator: Evaluator,
    limit: int | None,
    on_confirm: Callable[[Selection], None] = lambda _: None,
) -> None:
    """Score each selection's best mask on held-out documents and record it in the study.

    Args:
        selections: studies whose search has ended.
        evaluator: scores and keeps scores; equal masks are scored once.
        limit: confirmation documents per task; None = all.
        on_confirm: called before a mask is scored.
    """
    for selection in selections:
        best = best_trial(selection.study)
        if best is None or selection.facts.selector == ENQUEUED:
            continue  # masks that were enqueued by name are no winners of a search
        known = confirmation(selection.study.user_attrs)
        wanted = {
            "trial_number": best.number,
            "mask": best.facts.mask,
            "limit": limit,
            "statistics": STATISTICS,
        }
        if known is not None and {key: known.get(key) for key in wanted} == wanted:
            continue
        on_confirm(selection)
        tasks = confirm_mask(LayerMask.parse(best.facts.mask), evaluator, limit)
        set_confirmation(selection.study, {**wanted, "tasks": tasks})


def confirm_mask(
    mask: LayerMask, evaluator: Evaluator, limit: int | None
) -> dict[str, dict[str, Any]]:
    """Held-out scores of a mask: task → metric → value, the original's, and the paired difference.

    Returns:
        ``{task: {metric: {value, stderr, n_docs, original, original_stderr, higher_is_better,
        delta}}}``; ``delta`` as in ``PairedDifference``, for metrics that have values per document;
        none for a single document.
    """
    original = evaluator.confirm(LayerMask.empty(len(mask)), limit).scores
    converted = evaluator.confirm(mask, limit).scores
    return {task: _against(task, converted[task], original[task]) for task in converted}


def _against(task: str, converted: Score, original: Score) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    of_converted, of_original = stderrs(converted), stderrs(original)
    for metric, value in converted.values.items():
        row: dict[str, Any] = {
            "value": value,
            "stderr": of_converted[metric],
            "n_docs": converted.n_docs,
            "original": original.values[metric],
            "original_stderr": of_original[metric],
            "higher_is_better": _direction(task, metric),
        }
        if metric in converted.documents and converted.n_docs > 1:
            difference = paired_difference(converted.documents[metric], original.documents[metric])
            row["delta"] = asdict(difference)
        rows[metric] = row
    return rows


def _direction(task: str, metric: str) -> bool | None:
    """Whether more of a metric is better; None if lm-eval does not say.

    A metric of filtered answers ("exact_match,strict-match") has the direction of the metric.
    """
    name = metric.partition(",")[0]
    if name in HIGHER_IS_BETTER:
        return HIGHER_IS_BETTER[name]
    try:
        return higher_is_better(task, name)
    except UserError:
        return None
