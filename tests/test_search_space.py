"""What is at the budget, by the definition and by brute force."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from selector_workers import spaces

from mqasearch.budget import Budget
from mqasearch.errors import UserError
from mqasearch.mask import LayerMask, ModelShape
from mqasearch.search_space import SearchSpace

laws = settings(max_examples=100, deadline=None, derandomize=True)
some_spaces = st.composite(spaces)
EIGHT = ModelShape(32, 32, 8, 128, 4096, 2)


def masks_of(space: SearchSpace) -> st.SearchStrategy[LayerMask]:
    level = st.integers(0, space.n_levels)
    levels = st.lists(level, min_size=space.n_layers, max_size=space.n_layers)
    return levels.map(tuple).map(LayerMask)


@laws
@given(some_spaces(12), st.data())
def test_at_the_budget_no_layer_could_go_back(space: SearchSpace, data: st.DataObject) -> None:
    mask = data.draw(masks_of(space))
    backs = [mask.with_level(n, level - 1) for n, level in enumerate(mask) if level]
    is_enough = space.saved(mask) >= space.least
    is_tight = all(space.saved(back) < space.least for back in backs)
    assert space.is_at_budget(mask) == (is_enough and is_tight)
    if not space.is_at_budget(mask):
        assert space.size(mask) == space.saved(mask) != space.least
    if space.n_levels == 1:
        assert space.is_at_budget(mask) == (mask.n_converted == space.least)


@laws
@given(st.integers(1, 32), st.sampled_from([1, 2, 4]))
def test_budgets_by_layers_and_by_bytes_that_mean_the_same_are_one_space(
    n_layers: int, number: int
) -> None:
    left = (n_layers * number + (32 - n_layers) * 8) / (32 * 8)
    by_layers = Budget(n_layers=n_layers).space(EIGHT, [number])
    assert by_layers == SearchSpace(32, n_layers)
    if left < 1:
        assert Budget(kv_bytes_fraction=left).space(EIGHT, [number]) == by_layers


@laws
@given(st.floats(0.13, 0.99), st.data())
def test_a_mask_is_at_a_budget_in_bytes_if_and_only_if_its_cache_is_small_enough(
    fraction: float, data: st.DataObject
) -> None:
    numbers = (1, 2, 4)
    budget = Budget(kv_bytes_fraction=fraction)
    space = budget.space(EIGHT, numbers)
    mask = data.draw(masks_of(space))
    excess = budget.excess(mask.kv_heads(EIGHT, numbers), EIGHT)
    assert (space.saved(mask) >= space.least) == (excess <= 1e-9)


def test_every_layer_at_half_its_heads_is_at_the_budget_of_half() -> None:
    space = Budget(kv_bytes_fraction=0.5).space(EIGHT, (1, 2, 4))
    assert space.choices == (8, 4, 2, 1)
    assert space.is_at_budget(LayerMask((1,) * 32))


def test_a_budget_that_no_mask_meets_is_refused() -> None:
    with pytest.raises(UserError, match="cannot be met"):
        Budget(kv_bytes_fraction=0.1).space(EIGHT, (1, 2, 4))
    with pytest.raises(UserError, match="a budget of 33 layers does not fit a model of 32"):
        Budget(n_layers=33).space(EIGHT)
