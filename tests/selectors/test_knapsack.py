"""The best mask if harms add up, against brute force and an integer program."""

import math

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st
from selector_workers import masks_within, spaces

from mqasearch.mask import LayerMask
from mqasearch.search_space import SearchSpace
from mqasearch.selectors.knapsack import cheapest

laws = settings(max_examples=40, deadline=None, derandomize=True)
seeds = st.integers(0, 10**6)
some_spaces = st.composite(spaces)


@laws
@given(some_spaces(8), seeds)
def test_the_knapsack_is_the_best_mask_at_the_budget_if_harms_add_up(
    space: SearchSpace, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    harms = rng.normal(1.0, 1.0, size=(space.n_layers, space.n_levels))
    harms[rng.random(harms.shape) < 0.1] = np.inf

    def total(mask: LayerMask) -> float:
        return sum(harms[layer, level - 1] for layer, level in enumerate(mask) if level)

    best = min(total(mask) for mask in masks_within(space) if space.is_at_budget(mask))
    found = cheapest(space, harms)
    assert (found is None) == math.isinf(best)
    if found is not None:
        assert space.is_at_budget(found)
        assert total(found) == pytest.approx(best)


@laws
@given(some_spaces(8), seeds)
def test_the_knapsack_is_what_an_integer_program_finds(space: SearchSpace, seed: int) -> None:
    """If harms grow with the level, a mask that saves more than it must is never the best."""
    rng = np.random.default_rng(seed)
    harms = rng.lognormal(size=(space.n_layers, space.n_levels)).cumsum(axis=1)
    one_level = scipy.optimize.LinearConstraint(
        np.kron(np.eye(space.n_layers), np.ones(space.n_levels)), ub=1
    )
    saving = np.tile(space.savings, space.n_layers)
    enough = scipy.optimize.LinearConstraint(saving, lb=space.least)
    solved = scipy.optimize.milp(
        harms.ravel(),
        integrality=np.ones(harms.size),
        bounds=scipy.optimize.Bounds(0, 1),
        constraints=[one_level, enough],
    )
    found = cheapest(space, harms)
    assert found is not None
    ours = sum(harms[layer, level - 1] for layer, level in enumerate(found) if level)
    assert ours == pytest.approx(solved.fun)
