"""The masks one switch away from a mask, judged without making them."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from selector_workers import masks_within, spaces

from mqasearch.mask import LayerMask
from mqasearch.search_space import SearchSpace
from mqasearch.selectors.interactions import InteractionModel
from mqasearch.selectors.switches import best_switches

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
