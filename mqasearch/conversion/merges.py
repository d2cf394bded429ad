"""The merges by their name in a study file."""

from collections.abc import Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import Any

from mqasearch.conversion.aligned import Aligned
from mqasearch.conversion.merge import Merge
from mqasearch.conversion.pooling import Best, First, Mean
from mqasearch.errors import UnknownNameError, UserError

MERGES: Mapping[str, type[Merge]] = MappingProxyType(
    {merge.name: merge for merge in (Mean, First, Best, Aligned)}
)
"""Name → class; the first line of a class's docstring says what it does."""


def merge_of(name: str, **parameters: object) -> Merge:
    """The merge of that name.

    Raises:
        UnknownNameError: no such merge, or no such parameter of it.
        UserError: a parameter's value is of another type.
    """
    if name not in MERGES:
        raise UnknownNameError("merge", name, MERGES)
    kind = MERGES[name]
    known: dict[str, type] = {field.name: type(field.default) for field in fields(kind)}
    given: dict[str, Any] = {}
    for parameter, value in parameters.items():
        if parameter not in known:
            raise UnknownNameError(f"parameter of merge {name!r}", parameter, known)
        given[parameter] = _typed(value, known[parameter], f"merge {name!r}: {parameter}")
    return kind(**given)


def _typed(value: object, expected: type, where: str) -> object:
    if expected is float and type(value) is int:
        return float(value)
    if type(value) is not expected:
        wanted = "true or false" if expected is bool else "a number"
        raise UserError(f"{where} must be {wanted}, not {value!r:.80}")
    return value
