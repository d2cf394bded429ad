"""Is one mask better than another on the same documents?

Both are scored on the same documents, so the test is on the differences, which vary far less than
the values: the documents' own difficulty cancels. The test is on the mean, which is what the search
optimises and a table shows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from mqasearch.statistics.proportions import difference_limit, sign_test

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Mean of ``a − b`` over documents.

    Attributes:
        value: the mean difference.
        ci95: its two-sided 95 % confidence interval.
        p_value: two-sided p value of no difference; below 0.05 exactly when 0 is outside ``ci95``.
        n_docs: number of documents.
        stderr: standard error of ``value``; infinite for one document.
        ci90: its two-sided 90 % confidence interval: each end is a one-sided 95 % limit.
    """

    value: float
    ci95: Interval
    p_value: float
    n_docs: int
    stderr: float
    ci90: Interval


def paired_difference(a: Sequence[float], b: Sequence[float]) -> PairedDifference:
    """Compare two masks on the same documents.

    Example:
        >>> found = paired_difference([1, 1, 0, 1, 1, 1], [0, 1, 0, 0, 1, 1])
        >>> round(found.value, 3), found.p_value
        (0.333, 0.5)

    If both metrics are 0/1, the test is the exact sign test (McNemar 1947) on the documents that
    only one of the two got right, and the interval is that of Fay & Lumbard (2021), which inverts
    that test and stays valid when the two disagree on few documents or on none. Otherwise test and
    interval are Student's t on the differences.

    Args:
        a: one value per document.
        b: one value per document, for the same documents in the same order.

    Raises:
        ValueError: unequal lengths, or no document.
    """
    first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if first.shape != second.shape or first.size == 0:
        raise ValueError(f"cannot pair {first.size} documents with {second.size}")
    differences = first - second
    value, stderr = float(differences.mean()), _standard_error(differences)
    n = differences.size
    if np.isin(np.concatenate([first, second]), (0.0, 1.0)).all():
        more, fewer = int((differences > 0).sum()), int((differences < 0).sum())
        p_value = sign_test(more, fewer)
        ci95, ci90 = (_interval_of_signs(more, fewer, n, level) for level in (0.95, 0.90))
    else:
        p_value = _t_test(value, stderr, n)
        ci95, ci90 = (_t_interval(value, stderr, n, level) for level in (0.95, 0.90))
    return PairedDifference(value, ci95, p_value, n, stderr, ci90)


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for their number by Holm's (1979) step-down method.

    The chance that any true hypothesis is rejected stays below the level, whatever their
    dependence.
    """
    order = np.argsort(p_values)
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def _standard_error(differences: np.ndarray) -> float:
    n = differences.size
    return float(differences.std(ddof=1)) / math.sqrt(n) if n > 1 else math.inf


def _t_test(value: float, stderr: float, n: int) -> float:
    """Two-sided p value; 1 if the mean difference is 0, or if there is only one document."""
    if value == 0.0 or n == 1:
        return 1.0
    return float(2 * stats.t.sf(abs(value) / stderr, n - 1)) if stderr else 0.0


def _t_interval(value: float, stderr: float, n: int, level: float) -> Interval:
    if n == 1:
        return (-math.inf, math.inf)
    half_width = float(stats.t.ppf((1 + level) / 2, n - 1)) * stderr
    return (value - half_width, value + half_width)


def _interval_of_signs(more: int, fewer: int, n: int, level: float) -> Interval:
    tail = (1 - level) / 2
    return (-difference_limit(fewer, more, n, tail), difference_limit(more, fewer, n, tail))
