"""A converted model's scores beside the original's on the same documents, for a confirmation."""

from dataclasses import asdict
from typing import Any

from mqasearch.errors import UserError
from mqasearch.evaluation.uncertainty import stderrs
from mqasearch.score import HIGHER_IS_BETTER, Score
from mqasearch.statistics import paired_difference
from mqasearch.tasks import higher_is_better


def against(task: str, converted: Score, original: Score) -> dict[str, Any]:
    """One task's row of a confirmation: metric → both models' values, and their difference."""
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
