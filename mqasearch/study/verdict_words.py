"""A verdict in words and in plain data, for table, file and dashboard."""

import math
from typing import Any

from mqasearch.study.verdicts import Outcome, Size, Verdict

MOST_DECIMALS = 6


def sentence(verdict: Verdict) -> str:
    """The verdict in one sentence.

    Intervals are two-sided 90 % ones. Their end on the side of the loss is the one-sided 95 % limit
    that decides.
    """
    if not verdict.is_final:
        return (
            f"No verdict yet: {len(verdict.sizes)} of {verdict.n_sizes} sizes are confirmed on "
            "held-out documents."
        )
    late = " (a tolerance given when held-out results were known)" if verdict.late else ""
    size = verdict.chosen
    if size is None:
        said = f"{_saved(verdict.sizes[0])}: {size_in_words(verdict.sizes[0])}"
        return f"No size is shown to be within the tolerance{late}; {said}."
    return f"{_saved(size)}: {size_in_words(size)}{late}."


def size_in_words(size: Size) -> str:
    """For every tolerance: difference to the original, interval, documents, and conclusion.

    The conclusion is left out for a size that is not tested, because a smaller one failed or not
    all sizes are confirmed.
    """
    several = len({test.task for test in size.tests}) > 1
    said = [
        _figures(test, several) + (f": {conclusion(test)}" if size.result != "not tested" else "")
        for test in size.tests
    ]
    return "; ".join([*said, *(f"no held-out {metric}" for metric in size.missing)])


def difference_in_words(test: Outcome) -> str:
    """``−0.3 points [90 % CI −1.0, +0.4]``, with enough decimals to agree with the decision."""
    decimals = _decimals(test)
    value, low, high = (_signed(x, decimals) for x in (test.difference, *test.interval))
    return f"{value} points [90 % CI {low}, {high}]"


def conclusion(test: Outcome) -> str:
    """What the test shows; if it shows nothing, how many documents it would need."""
    within = test.tolerance.words
    if test.loss.shown:
        return within
    if test.loss.ci90[0] >= test.loss.margin:
        return f"not {within}"
    needed = test.loss.documents_needed
    if needed is None:
        return f"not shown to be {within}, nor by more documents if this is the loss"
    return f"not shown to be {within}, which would take about {_rounded_up(needed):,} documents"


def as_data(verdict: Verdict) -> dict[str, Any]:
    """The verdict as data that JSON can hold."""
    return {
        "sentence": sentence(verdict),
        "tolerance": [entry.model_dump(mode="json") for entry in verdict.tolerance],
        "late": verdict.late,
        "is_final": verdict.is_final,
        "comparison": verdict.chosen.comparison if verdict.chosen else None,
        "sizes": [_size(size) for size in verdict.sizes],
    }


def _size(size: Size) -> dict[str, Any]:
    return {
        "comparison": size.comparison,
        "selector": size.selector,
        "trial_number": size.trial_number,
        "n_converted": size.n_converted,
        "n_layers": size.n_layers,
        "kv_heads": list(size.kv_heads),
        "kv_bytes_saved": size.kv_bytes_saved,
        "is_healed": size.is_healed,
        "result": size.result,
        "tests": [
            {
                "task": test.task,
                "metric": test.tolerance.metric,
                "margin_points": test.tolerance.points,
                "difference_points": test.difference,
                "ci90_points": list(test.interval),
                "n_docs": test.loss.n_docs,
                "shown": test.loss.shown,
                "documents_needed": None if test.loss.shown else test.loss.documents_needed,
            }
            for test in size.tests
        ],
    }


def _saved(size: Size) -> str:
    return (
        f"{size.n_converted} of {size.n_layers} layers, "
        + ("healed, " if size.is_healed else "")
        + f"{100 * size.kv_bytes_saved:.0f} % less KV cache"
    )


def _figures(test: Outcome, several_tasks: bool) -> str:
    name = f"{test.tolerance.metric} of {test.task}" if several_tasks else test.tolerance.metric
    return f"{name} {difference_in_words(test)} on {test.loss.n_docs:,} held-out documents"


def _decimals(test: Outcome) -> int:
    """The fewest decimals with which rounding moves no limit to the other side of the margin."""
    limits, margin = [100 * end for end in test.loss.ci90], test.tolerance.points
    for decimals in range(1, MOST_DECIMALS):
        if all((round(end, decimals) < margin) == (end < margin) for end in limits):
            return decimals
    return MOST_DECIMALS


def _signed(value: float, decimals: int) -> str:
    """The value with its sign; the minus is a true minus sign, and zero is positive."""
    return f"{round(value, decimals) + 0.0:+.{decimals}f}".replace("-", "−")


def _rounded_up(n: int) -> int:
    """``n`` rounded up to two significant digits, because more are not known."""
    step: int = 10 ** max(0, len(str(n)) - 2)
    return math.ceil(n / step) * step
