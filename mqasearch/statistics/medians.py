"""The interval of a median, without an assumption on the distribution."""

from collections.abc import Sequence

from scipy import stats

COVERAGE = 0.93
"""Least coverage of the intervals; the range of five repetitions covers 93.75 %."""


def median_interval(samples: Sequence[float]) -> tuple[float, float] | None:
    """Confidence interval of the median, of at least ``COVERAGE``, for any distribution.

    It consists of order statistics and is the inverse of the sign test (Conover, *Practical
    Nonparametric Statistics*, 3.2). None = there are too few samples for an interval.
    """
    place = int(stats.binom.ppf((1 - COVERAGE) / 2, len(samples), 0.5))
    if place == 0:
        return None
    ordered = sorted(samples)
    return ordered[place - 1], ordered[-place]
