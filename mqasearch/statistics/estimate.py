"""A number with its standard error, and how the two are written."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

MOST_DECIMALS = 6
DECIMALS = 4
"""Decimals of a value whose standard error is unknown."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over documents.

    Attributes:
        value: the mean.
        stderr: its standard error; None if it is unknown.
    """

    value: float
    stderr: float | None = None

    def __str__(self) -> str:
        return self.text()

    def text(self, *, signed: bool = False) -> str:
        """``0.1053 ± 0.0042``: both to two significant digits of the standard error.

        Without a standard error, or if it is 0, the value has four decimals.

        Args:
            signed: whether a positive value gets its sign, as differences do.
        """
        sign = "+" if signed else ""
        decimals = _decimals(self.stderr)
        value = f"{self.value:{sign}.{decimals}f}"
        return value if self.stderr is None else f"{value} ± {self.stderr:.{decimals}f}"


def _decimals(stderr: float | None) -> int:
    """Number of decimals that show two significant digits of the rounded standard error."""
    if not stderr or not math.isfinite(stderr):
        return DECIMALS
    exponent = int(f"{stderr:.1e}".partition("e")[2])
    return min(max(1 - exponent, 0), MOST_DECIMALS)


def weighted_mean(weights: Sequence[float], parts: Sequence[Estimate]) -> Estimate:
    """Σwv/Σw, with √Σw²s²/Σw as its standard error, since the parts are of different documents.

    Args:
        weights: one for each part, not all 0.
        parts: the estimates to average; if one has no standard error, the mean has none.
    """
    total = sum(weights)
    value = sum(w * part.value for w, part in zip(weights, parts, strict=True)) / total
    errors = [part.stderr for part in parts if part.stderr is not None]
    if len(errors) < len(parts):
        return Estimate(value)
    terms = [w * error for w, error in zip(weights, errors, strict=True)]
    return Estimate(value, math.hypot(*terms) / total)
