"""The merges by the name that a study file gives."""

from collections.abc import Mapping
from dataclasses import fields
from types import MappingProxyType

from mqasearch.conversion.merge import Merge
from mqasearch.conversion.pooling import Best, First, Mean
from mqasearch.errors import UnknownNameError

MERGES: Mapping[str, type[Merge]] = MappingProxyType(
    {merge.name: merge for merge in (Mean, First, Best)}
)
"""Name → class; the first line of a class's docstring says what it does."""


def merge_of(name: str, **parameters: object) -> Merge:
    """The merge of that name.

    Raises:
        UnknownNameError: no such merge, or no such parameter of it.
    """
    if name not in MERGES:
        raise UnknownNameError("merge", name, MERGES)
    kind = MERGES[name]
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    for parameter in parameters:
        if parameter not in known:
            raise UnknownNameError(f"parameter of merge {name!r}", parameter, known)
    return kind(**parameters)
