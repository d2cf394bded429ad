"""Reads stored values that another version of mqasearch, or anybody, may have written."""

import math
from collections.abc import Mapping
from typing import Any


def mapping(value: object) -> Mapping[str, Any]:
    """The value if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def number(value: object) -> float | None:
    """The value if it is a finite number, else None: NaN fits neither JSON nor a figure."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if math.isfinite(value) else None


def count(value: object) -> int | None:
    """The value as an integer if it is a finite number, else None."""
    known = number(value)
    return None if known is None else int(known)
