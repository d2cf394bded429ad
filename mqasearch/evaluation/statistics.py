"""Is one mask better than another on the same documents?

Both are scored on the same documents, so the test is on the differences, which vary far less than
the values: the documents' own difficulty cancels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Mean of ``a − b`` over documents.

    Attributes:
        value: the mean difference.
        ci95: its 95 % confidence interval.
        p_value: two-sided, of no difference.
        n_docs: number of documents.
    """

    value: float
    ci95: tuple[float, float]
    p_value: float
    n_docs: int


def paired_difference(a: Sequence[float], b: Sequence[float]) -> PairedDifference:
    """Compare two masks on the same documents.

    Where both metrics are 0/1: the interval of Agresti & Min (2005), which stays honest when the
    two disagree on few documents or on none, and the exact McNemar test (McNemar 1947; the
    binomial test on the documents that only one of the two got right). Else: Student's t on the
    differences, and Wilcoxon's signed-rank test (Wilcoxon 1945; zeros by Pratt's method), which
    assumes no normality.

    Args:
        a: one value per document.
        b: of the same documents, in the same order.

    Raises:
        ValueError: unequal lengths, or no document.
    """
    first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if first.shape != second.shape or first.size == 0:
        raise ValueError(f"cannot pair {first.size} documents with {second.size}")
    differences = first - second
    value = float(differences.mean())
    if np.isin(np.concatenate([first, second]), (0.0, 1.0)).all():
        wins, losses = int((differences > 0).sum()), int((differences < 0).sum())
        ci95 = _agresti_min(wins, losses, len(a))
        return PairedDifference(value, ci95, _mcnemar(wins, losses), len(a))
    half_width = _t_half_width(differences)
    ci95 = (value - half_width, value + half_width)
    return PairedDifference(value, ci95, wilcoxon_p(differences), len(a))


def wilcoxon_p(differences: Sequence[float], alternative: str = "two-sided") -> float:
    """p value of Wilcoxon's signed-rank test; 1 where no document differs."""
    values = np.asarray(differences, dtype=float)
    if not values.any():
        return 1.0
    result = stats.wilcoxon(
        values, zero_method="pratt", alternative=alternative, method="asymptotic"
    )
    return float(result.pvalue)


def _t_half_width(differences: np.ndarray) -> float:
    n = differences.size
    spread = float(differences.std(ddof=1)) if n > 1 else math.inf
    if spread == 0.0:
        return 0.0
    return float(stats.t.ppf(0.975, n - 1)) * spread / math.sqrt(n) if n > 1 else math.inf


def _agresti_min(wins: int, losses: int, n: int) -> tuple[float, float]:
    """Wald's interval after half a document was added to each cell of the 2 × 2 table."""
    more, fewer, total = wins + 0.5, losses + 0.5, n + 2
    centre = (more - fewer) / total
    error = math.sqrt(more + fewer - (more - fewer) ** 2 / total) / total
    half_width = float(stats.norm.ppf(0.975)) * error
    return max(-1.0, centre - half_width), min(1.0, centre + half_width)


def _mcnemar(wins: int, losses: int) -> float:
    if wins + losses == 0:
        return 1.0
    return float(stats.binomtest(wins, wins + losses).pvalue)
