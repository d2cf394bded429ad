"""Standard errors of an objective, and of its difference to the original's objective.

The difference is paired: both masks are scored on the same documents, so that the documents' own
difficulty cancels. The standard error of one task is that of a mean over its documents. Those of
several tasks are combined as independent ones.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np

from mqasearch.score import Score, TaskSpec
from mqasearch.statistics import Estimate, weighted_mean


def objective(tasks: Sequence[TaskSpec], scores: Mapping[str, Score]) -> Estimate:
    """The weighted mean of each task's metric.

    Args:
        tasks: the tasks of the objective.
        scores: task name → score.
    """
    parts = [_mean(scores[task.name], task.metric) for task in tasks]
    return weighted_mean([task.weight for task in tasks], parts)


def difference_stderr(
    tasks: Sequence[TaskSpec], scores: Mapping[str, Score], originals: Mapping[str, Score]
) -> float | None:
    """Standard error of the objective − the original's objective, on the same documents.

    None if a metric has no values per document, or is not their mean (a perplexity is not).
    """
    errors = [_paired(scores[task.name], originals[task.name], task.metric) for task in tasks]
    parts = [Estimate(0.0, error) for error in errors]
    return weighted_mean([task.weight for task in tasks], parts).stderr


def given_up_stderr(
    score: Score, incumbent: Score, metric: str, original: Score | None = None
) -> float | None:
    """Standard error of the expected score of a mask that was given up.

    With ``original`` it is that of the expected difference to the original.

    Args:
        score: the mask's score on the first documents.
        incumbent: the score, on all documents, of the mask that it lost against.
        metric: the metric.
        original: the original's score on all documents; None for the value itself.

    Returns:
        None if a score is not a mean of values per document, if the original is scored on other
        documents, or if the mask is scored on fewer than two.
    """
    if not _is_mean(score, metric) or not _is_mean(incumbent, metric):
        return None
    known = np.asarray(incumbent.documents[metric])
    change = np.asarray(score.documents[metric]) - known[: score.n_docs]
    if original is not None:
        if not _is_mean(original, metric) or original.n_docs != incumbent.n_docs:
            return None
        known = known - np.asarray(original.documents[metric])
    return _stderr_of_sum(known, change)


def _stderr_of_sum(known: np.ndarray, change: np.ndarray) -> float | None:
    """Standard error of mean(known) over N documents + mean(change) over the first n of them.

    The sum is a mean over N documents in two strata: the first n, which count ``known + N/n ·
    change``, and the others, which count ``known`` (Cochran 1977, ch. 12: double sampling).
    """
    n, total = change.size, known.size
    if n < 2:
        return None
    first = known[:n] + total / n * change
    variance = n * first.var(ddof=1) + (total - n) * known.var(ddof=1)
    return math.sqrt(variance) / total


def stderrs(score: Score) -> dict[str, float | None]:
    """Metric → standard error; None if it is unknown, as it is for a single document."""
    known = {
        metric: error
        for metric, error in score.stderr.items()
        if math.isfinite(error) and score.n_docs > 1
    }
    return {metric: known.get(metric) for metric in score.values}


def _mean(score: Score, metric: str) -> Estimate:
    return Estimate(score.values[metric], stderrs(score)[metric])


def _paired(score: Score, original: Score, metric: str) -> float | None:
    if score.n_docs != original.n_docs or score.n_docs < 2:
        return None
    if not _is_mean(score, metric) or not _is_mean(original, metric):
        return None
    difference = np.asarray(score.documents[metric]) - np.asarray(original.documents[metric])
    return float(difference.std(ddof=1)) / math.sqrt(difference.size)


def _is_mean(score: Score, metric: str) -> bool:
    documents = score.documents.get(metric)
    if not documents:
        return False
    return math.isclose(fmean(documents), score.values[metric], rel_tol=1e-6, abs_tol=1e-9)
