"""The masks one switch away from a mask, judged without making them."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from selector_workers import masks_within, spaces

from mqasearch.mask import LayerMask
from mqasearch.search_space import SearchSpace
from mqasearch.selectors.interactions import InteractionModel
from mqasearch.selectors.switches import best_neighbours, best_switches, repaired_changes

laws = settings(max_examples=30, deadline=None, derandomize=True)
seeds = st.integers(0, 10**6)
some_spaces = st.composite(spaces)


@laws
@given(some_spaces(8), seeds, st.data())
def test_switches_are_all_masks_at_the_budget_with_one_or_two_other_levels(
    space: SearchSpace, seed: int, data: st.DataObject
) -> None:
    rng = np.random.default_rng(seed)
    n_layers, n_levels = space.n_layers, space.n_levels
    scales = rng.lognormal(size=(n_layers, n_levels))
    scored = rng.integers(0, n_levels + 1, size=(10, n_layers))
    scored = scored[scored.any(axis=1)]
    model = InteractionModel(scored, rng.normal(size=len(scored)), scales)
    at_budget = [mask for mask in masks_within(space) if space.is_at_budget(mask)]
    mask = data.draw(st.sampled_from(at_budget))
    row = np.array(mask.levels)
    allowed = np.full((n_layers, 1 + n_levels), True)
    rows, added = best_switches(space, model, row, allowed, most=10**6)

    def n_changes(other: LayerMask) -> int:
        return sum(new != old for old, new in zip(mask, other, strict=True))

    near = {other.levels for other in at_budget if n_changes(other) in (1, 2)}
    assert {tuple(map(int, each)) for each in rows} == near
    assert len(rows) == len(near)
    if len(rows):
        expected = model.mean(rows) - model.mean(row[None])
        np.testing.assert_allclose(added, expected, rtol=1e-7, atol=1e-9)
        assert (np.diff(added) >= 0).all()


@laws
@given(some_spaces(8), seeds, st.data())
def test_neighbours_are_at_the_budget_and_judged_by_the_expected_loss(
    space: SearchSpace, seed: int, data: st.DataObject
) -> None:
    rng = np.random.default_rng(seed)
    n_layers, n_levels = space.n_layers, space.n_levels
    scored = rng.integers(0, n_levels + 1, size=(10, n_layers))
    scored = scored[scored.any(axis=1)]
    scales = rng.lognormal(size=(n_layers, n_levels))
    model = InteractionModel(scored, rng.normal(size=len(scored)), scales)
    at_budget = [mask for mask in masks_within(space) if space.is_at_budget(mask)]
    row = np.array(data.draw(st.sampled_from(at_budget)).levels)
    allowed = rng.random((n_layers, 1 + n_levels)) < 0.8
    allowed[:, 0] = True
    allowed[np.arange(n_layers), row] = True
    rows, added = best_neighbours(space, model, row, allowed, most=10**6)
    for each in rows:
        assert space.is_at_budget(LayerMask(tuple(map(int, each))))
        assert allowed[np.arange(n_layers), each].all()
    if len(rows):
        expected = model.mean(rows) - model.mean(row[None])
        np.testing.assert_allclose(added, expected, rtol=1e-7, atol=1e-9)
    few, _ = best_neighbours(space, model, row, allowed, most=2)
    assert (few == rows[:2]).all()
    switches, _ = best_switches(space, model, row, allowed, most=10**6)
    assert {tuple(each) for each in switches.tolist()} <= {tuple(each) for each in rows.tolist()}


def test_the_neighbours_of_an_even_mask_make_up_for_what_a_layer_gets_back() -> None:
    space = SearchSpace(10, 40, savings=(4, 6, 7), choices=(8, 4, 2, 1))
    even = np.ones(10, dtype=int)
    rng = np.random.default_rng(0)
    scored = rng.integers(0, 4, size=(10, 10))
    model = InteractionModel(scored, rng.normal(size=10), rng.lognormal(size=(10, 3)))
    allowed = np.full((10, 4), True)
    assert not len(best_switches(space, model, even, allowed, 10)[0])
    rows = repaired_changes(space, model, even, allowed)
    assert {layer for row in rows for layer in np.flatnonzero(row == 0)} == {*range(10)}
