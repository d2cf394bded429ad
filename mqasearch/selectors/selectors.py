"""Selectors by name, and their parameters checked before anything is made."""

from collections.abc import Mapping
from typing import Any

from mqasearch.registry import Registry
from mqasearch.search_space import SearchSpace
from mqasearch.selectors.alternating import AlternatingSelector
from mqasearch.selectors.at_random import RandomSelector
from mqasearch.selectors.consecutive import ConsecutiveSelector
from mqasearch.selectors.enqueued import EnqueuedSelector
from mqasearch.selectors.evolution import EvolutionSelector
from mqasearch.selectors.exhaustive import ExhaustiveSelector
from mqasearch.selectors.gp import GPSelector
from mqasearch.selectors.greedy import GreedySelector
from mqasearch.selectors.selector import Selector
from mqasearch.selectors.sensitivity import SensitivitySelector
from mqasearch.selectors.tpe import TPESelector

SELECTORS: Registry[Selector] = Registry(
    "selector",
    (
        AlternatingSelector,
        ConsecutiveSelector,
        SensitivitySelector,
        GreedySelector,
        GPSelector,
        EvolutionSelector,
        TPESelector,
        RandomSelector,
        ExhaustiveSelector,
    ),
    also=("n_trials",),
)
"""Every selector that a study file may name; ``summary`` is its line in a list of them."""

PLANNED = frozenset(name for name, selector in SELECTORS.items() if selector.ends)
"""The selectors whose plan ends by itself: they need no number of trials."""

RECOMMENDED: Mapping[str, Mapping[str, Any]] = {
    "sensitivity": {},
    "greedy": {},
    "gp": {"n_masks": 10},
}
"""Selector → its parameters: the default of a study file without ``selectors``."""


def selector_of(name: str, space: SearchSpace, seed: int = 0, **parameters: Any) -> Selector:
    """Make a selector.

    Args:
        name: a key of ``SELECTORS``, or ``enqueued`` for a study of enqueued masks alone.
        space: the masks that may be proposed, and the budget.
        seed: ≥ 0.
        parameters: the selector's parameters, as in the study file.

    Raises:
        UnknownNameError: no such selector, or no such parameter of it.
        UserError: a parameter of a wrong type or out of range, a budget that does not fit.
    """
    if name == EnqueuedSelector.name:
        return EnqueuedSelector(space, seed)
    checked = SELECTORS.checked(name, parameters)
    return SELECTORS[name](space, seed, **checked)


def check_parameters(name: str, parameters: Mapping[str, Any]) -> None:
    """Check a selector's name and parameters without a model: names, types and ranges.

    Raises:
        UnknownNameError: no such selector, or no such parameter of it.
        UserError: a parameter of a wrong type or out of range.
    """
    checked = SELECTORS.checked(name, parameters)
    # The constructor checks the ranges, which do not depend on the model.
    SELECTORS[name](SearchSpace(n_layers=1, least=1), 0, **checked)
