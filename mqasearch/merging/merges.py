"""The merges by their name in a study file."""

from mqasearch.merging.aligned import Aligned
from mqasearch.merging.merge import Merge
from mqasearch.merging.pooling import Best, First, Mean
from mqasearch.registry import Registry

MERGES: Registry[Merge] = Registry("merge", (Mean, First, Best, Aligned))
"""Name → class; the first line of a class's docstring says what it does."""


def merge_of(name: str, **parameters: object) -> Merge:
    """The merge of that name.

    Example:
        >>> merge_of("aligned", refit=False).digest
        'aligned(first_token=64.0, refit=False)'

    Raises:
        UnknownNameError: there is no such merge, or it has no such parameter.
        UserError: a parameter's value has another type, or is out of range.
    """
    checked = MERGES.checked(name, parameters)
    return MERGES[name](**checked)
