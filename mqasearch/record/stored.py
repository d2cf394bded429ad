"""Reading stored values that another version, or anybody, may have written."""

import math
from collections.abc import Mapping
from typing import Any


def mapping(value: object) -> Mapping[str, Any]:
    """The value if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def number(value: object) -> float | None:
    """A finite number, or None: JSON has no NaN, and a figure no place for it."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if math.isfinite(value) else None


def count(value: object) -> int | None:
    """A whole number, or None."""
    known = number(value)
    return None if known is None else int(known)
