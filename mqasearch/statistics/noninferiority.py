"""Is a mask at most a margin worse than the original, and how many documents show it?

A loss is positive if the mask is worse. "At most the margin worse" is shown if the upper end of the
paired one-sided 95 % interval of the loss is below the margin. That end is also the upper end of
the two-sided 90 % interval, which is the interval that is reported, so the decision agrees with the
reported figures.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile

from scipy import stats

from mqasearch.statistics.paired import Interval
from mqasearch.statistics.proportions import least_documents

LEVEL = 0.05
"""The probability of calling a mask within the margin although it is just outside."""

POWER = 0.8
"""The probability with which ``documents_needed`` documents are enough."""

MOST_DOCUMENTS = 10**9
"""More documents than any benchmark has."""


@dataclass(frozen=True, slots=True)
class NonInferiority:
    """The loss of a mask against a margin.

    Attributes:
        loss: mean over documents, positive if the mask is worse.
        ci90: its two-sided 90 % interval, whose upper end is the one-sided 95 % limit.
        stderr: standard error of ``loss``.
        n_docs: number of documents.
        margin: the largest loss that is tolerated, in the metric's unit.
    """

    loss: float
    ci90: Interval
    stderr: float
    n_docs: int
    margin: float

    @property
    def shown(self) -> bool:
        """Whether the loss is shown to be below the margin, at the 5 % level."""
        return self.ci90[1] < self.margin

    @property
    def documents_needed(self) -> int | None:
        """How many documents would show it with a chance of 80 %, if loss and variance stay equal.

        None if no number would, which is so if the loss that was found is as large as the margin.
        """
        if self.n_docs < 2:
            return None
        if self.stderr == 0.0 and self.loss == 0.0 < self.ci90[1]:  # a 0/1 metric, all alike
            return least_documents(self.margin)
        spread = self.stderr * math.sqrt(self.n_docs)
        of_t = float(stats.t.isf(LEVEL, self.n_docs - 1)) * self.stderr
        wider = max(0.0, self.ci90[1] - self.loss - of_t)
        return documents_needed(self.margin - self.loss, spread, extra=wider * self.n_docs)


def documents_needed(
    distance: float, spread: float, *, extra: float = 0.0, power: float = POWER
) -> int | None:
    """The smallest number of documents on which a loss is shown to be below the margin.

    It is computed with the noncentral t distribution.

    Args:
        distance: distance of the mean loss from the margin.
        spread: standard deviation of the documents' losses.
        extra: how much wider an exact interval is on one side than Student's, times the number of
            documents, since the excess shrinks with their number and not with its square root.
        power: probability of showing it.

    Returns:
        The number; None if no number is enough, or none that a benchmark has.
    """
    if distance <= 0:
        return None
    slope = float(stats.norm.isf(LEVEL) + stats.norm.isf(1 - power)) * spread
    root = (slope + math.sqrt(slope**2 + 4 * distance * extra)) / (2 * distance)
    if root**2 > MOST_DOCUMENTS:
        return None
    n = max(2, math.ceil(root**2))
    while t_power(distance - extra / n, spread, n) < power:
        n += 1
    return n


def t_power(distance: float, spread: float, n: int) -> float:
    """Power of a one-sided t test on ``n`` documents; arguments as in ``documents_needed``."""
    if spread == 0.0:
        return float(distance > 0)
    effect = distance / spread * math.sqrt(n)
    return float(stats.nct.sf(stats.t.isf(LEVEL, n - 1), n - 1, effect))


def first_in_order(passed: Iterable[bool]) -> int:
    """How many hypotheses are shown in a fixed order, each at the full level.

    Testing stops at the first that is not shown; the chance of any false claim stays at the level
    of one test (fixed-sequence testing, Maurer, Hothorn & Lehmacher 1995).
    """
    return sum(takewhile(bool, passed))
