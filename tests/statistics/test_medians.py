"""The interval of a median holds for any distribution."""

import random

import pytest
from scipy import stats

from mqasearch.statistics.medians import COVERAGE, median_interval


@pytest.mark.parametrize("n", range(1, 60))
def test_the_interval_covers_the_median_as_often_as_it_says(n: int) -> None:
    """Of samples from any distribution, each is below its median or above, like a coin."""
    interval = median_interval([float(place) for place in range(n)])
    assert (interval is None) == (2 * stats.binom.cdf(0, n, 0.5) > 1 - COVERAGE)
    if interval is not None:
        below = int(interval[0])  # so many samples are below the interval
        assert interval == (below, n - 1 - below)
        assert 1 - 2 * stats.binom.cdf(below, n, 0.5) >= COVERAGE
        assert 1 - 2 * stats.binom.cdf(below + 1, n, 0.5) < COVERAGE


def test_five_repetitions_give_the_whole_range_in_any_order() -> None:
    samples = [3.0, 1.0, 2.0, 5.0, 4.0]
    random.Random(0).shuffle(samples)
    assert median_interval(samples) == (1.0, 5.0)
