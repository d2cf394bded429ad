"""Selectors by name, and their parameters checked before anything is made."""

import inspect
import math
import typing
from collections.abc import Mapping
from typing import Any, Literal

from mqasearch.errors import UnknownNameError, UserError
from mqasearch.selectors.alternating import AlternatingSelector
from mqasearch.selectors.at_random import RandomSelector
from mqasearch.selectors.consecutive import ConsecutiveSelector
from mqasearch.selectors.enqueued import EnqueuedSelector
from mqasearch.selectors.exhaustive import ExhaustiveSelector
from mqasearch.selectors.gp import GPSelector
from mqasearch.selectors.greedy import GreedySelector
from mqasearch.selectors.selector import Selector
from mqasearch.selectors.sensitivity import SensitivitySelector
from mqasearch.selectors.tpe import TPESelector

SELECTORS: Mapping[str, type[Selector]] = {
    selector.name: selector
    for selector in (
        AlternatingSelector,
        ConsecutiveSelector,
        SensitivitySelector,
        GreedySelector,
        GPSelector,
        TPESelector,
        RandomSelector,
        ExhaustiveSelector,
    )
}
"""Every selector that a study file may name; ``summary`` is its line in a list of them."""

PLANNED = frozenset(name for name, selector in SELECTORS.items() if selector.ends)
"""The selectors whose plan ends by itself: they need no number of trials."""

RECOMMENDED: Mapping[str, Mapping[str, Any]] = {
    "sensitivity": {},
    "greedy": {},
    "gp": {"n_masks": 10},
}
"""Selector → its parameters: the default of a study file without ``selectors``."""


def selector_of(
    name: str, n_layers: int, n_converted: int, seed: int = 0, **parameters: Any
) -> Selector:
    """Make a selector.

    Args:
        name: a key of ``SELECTORS``, or ``enqueued`` for a study of enqueued masks alone.
        n_layers: layers of the model.
        n_converted: layers that a mask at the budget converts.
        seed: ≥ 0.
        parameters: the selector's parameters, as in the study file.

    Raises:
        UnknownNameError: no such selector, or no such parameter of it.
        UserError: a parameter of a wrong type or out of range, a budget that does not fit.
    """
    if name == EnqueuedSelector.name:
        return EnqueuedSelector(n_layers, n_converted, seed)
    check_parameters(name, parameters)
    return SELECTORS[name](n_layers, n_converted, seed, **parameters)


def check_parameters(name: str, parameters: Mapping[str, Any]) -> None:
    """Check a selector's name and parameters without a model: names, types and ranges.

    Raises:
        UnknownNameError: no such selector, or no such parameter of it.
        UserError: a parameter of a wrong type or out of range.
    """
    if name not in SELECTORS:
        raise UnknownNameError("selector", name, SELECTORS)
    known = parameters_of(name)
    for parameter, value in parameters.items():
        if not known:
            raise UserError(f"selector {name!r} takes no parameters, not even {parameter!r}")
        if parameter not in known:
            everything = {*known, "n_trials"}  # which every selector takes
            raise UnknownNameError(f"parameter of selector {name!r}:", parameter, everything)
        if (expected := _mismatch(value, known[parameter][0])) is not None:
            raise UserError(f"{parameter} of selector {name!r}: expected {expected}, got {value!r}")
    # The constructor checks the ranges, which do not depend on the model.
    SELECTORS[name](1, 1, 0, **parameters)


def parameters_of(name: str) -> dict[str, tuple[Any, Any]]:
    """A selector's own parameters: name → (type, default)."""
    constructor = SELECTORS[name].__init__
    types = typing.get_type_hints(constructor)
    return {
        parameter.name: (types[parameter.name], parameter.default)
        for parameter in inspect.signature(constructor).parameters.values()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }


def _mismatch(value: object, kind: Any) -> str | None:
    """What was expected instead of ``value``; None if it fits."""
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        return None if value in choices else " or ".join(map(str, choices))
    if kind is bool:
        return None if isinstance(value, bool) else "true or false"
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return None if is_number and isinstance(value, int) else "a whole number"
    return None if is_number and math.isfinite(typing.cast(float, value)) else "a finite number"
