"""Selectors: they decide which layers to convert next, from the masks scored so far.

:func:`selector_of` makes one; :class:`Selector` is the base class of a new one, and
:class:`SelectorSampler` makes any of them the sampler of an Optuna study.
"""

from mqasearch.selectors.draw import random_mask, repaired
from mqasearch.selectors.history import History, MaskState, MaskTrial
from mqasearch.selectors.knapsack import cheapest
from mqasearch.selectors.masks_of_size import masks_of_size
from mqasearch.selectors.optuna_history import (
    INVALID_KEY,
    MASK_KEY,
    mask_of,
    read_history,
)
from mqasearch.selectors.optuna_sampler import SelectorSampler
from mqasearch.selectors.parameters import distributions, levels_of, mask_params, param_name
from mqasearch.selectors.planned import Plan, PlannedSelector
from mqasearch.selectors.selector import Selector, Wants
from mqasearch.selectors.selectors import (
    PLANNED,
    RECOMMENDED,
    SELECTORS,
    check_parameters,
    selector_of,
)
from mqasearch.selectors.switches import best_neighbours

__all__ = [
    "INVALID_KEY",
    "MASK_KEY",
    "PLANNED",
    "RECOMMENDED",
    "SELECTORS",
    "History",
    "MaskState",
    "MaskTrial",
    "Plan",
    "PlannedSelector",
    "Selector",
    "SelectorSampler",
    "Wants",
    "best_neighbours",
    "cheapest",
    "check_parameters",
    "distributions",
    "levels_of",
    "mask_of",
    "mask_params",
    "masks_of_size",
    "param_name",
    "random_mask",
    "read_history",
    "repaired",
    "selector_of",
]
