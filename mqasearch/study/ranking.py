"""Which of the scored masks is the best; the same for every table, figure, file and race.

A mask that was given up in a race is never the best, because its value is an estimate from a few
documents. A mask without a finite value is never the best either. If masks are equal, the one
that was proposed first is better; if these are equal too (trials of two studies), the one that is
given first. So the best mask at a study's budget is a trial with the value of Optuna's own
``study.best_value``.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar


class Scored(Protocol):
    """A trial that may be the best."""

    @property
    def order(self) -> int:
        """Place in the order in which the study's masks were proposed."""

    @property
    def value(self) -> float | None:
        """The objective; None if it is not known."""

    @property
    def given_up(self) -> int | None:
        """Number of documents after which the mask was given up; None if all were scored."""


Row = TypeVar("Row", bound=Scored)


def ranked(rows: Iterable[Row], *, maximize: bool) -> list[Row]:
    """The rows that can be the best, sorted, the best one first.

    Args:
        rows: finished trials of one study, or of several studies with the same objective.
        maximize: whether a larger value is better.
    """
    return sorted(_rivals(rows), key=_order(maximize))


def best(rows: Iterable[Row], *, maximize: bool) -> Row | None:
    """The first row of ``ranked``; None if there is none."""
    return min(_rivals(rows), key=_order(maximize), default=None)


def improvements(rows: Iterable[Row], *, maximize: bool) -> list[Row]:
    """The rows that are better than all rows before them, in the given order."""
    found: list[Row] = []
    for row in _rivals(rows):
        if not found or _loss(row, maximize) < _loss(found[-1], maximize):
            found.append(row)
    return found


def front(rows: Iterable[Row], cost: Callable[[Row], float], *, maximize: bool) -> list[Row]:
    """The rows that no other one beats in both cost and value, the cheapest first.

    Args:
        rows: as for ``ranked``.
        cost: the cost of a row; less is better.
        maximize: whether a larger value is better.
    """
    cheapest_first = sorted(ranked(rows, maximize=maximize), key=cost)
    return improvements(cheapest_first, maximize=maximize)


def _rivals(rows: Iterable[Row]) -> Sequence[Row]:
    return [
        row
        for row in rows
        if row.given_up is None and row.value is not None and math.isfinite(row.value)
    ]


def _order(maximize: bool) -> Callable[[Scored], tuple[float, int]]:
    return lambda row: (_loss(row, maximize), row.order)


def _loss(row: Scored, maximize: bool) -> float:
    assert row.value is not None
    return -row.value if maximize else row.value
