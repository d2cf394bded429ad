"""Random masks, neighbours and repairs, in spaces of one level and of several."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from selector_workers import all_masks, masks_within, spaces

from mqasearch.budget import Budget
from mqasearch.mask import LayerMask, ModelShape
from mqasearch.search_space import SearchSpace
from mqasearch.selectors.draw import (
    n_left,
    random_mask,
    random_neighbour,
    random_unseen,
    repaired,
)
from mqasearch.selectors.masks_of_size import MasksOfSize

laws = settings(max_examples=50, deadline=None, derandomize=True)
some_spaces = st.composite(spaces)
seeds = st.integers(0, 1000)


@st.composite
def masks_in(draw: st.DrawFn, space: SearchSpace) -> LayerMask:
    """Any mask of the space."""
    levels = st.integers(0, space.n_levels)
    return LayerMask(tuple(draw(levels) for _ in range(space.n_layers)))


@laws
@given(some_spaces(8), seeds, st.data())
def test_a_repair_reaches_the_budget(space: SearchSpace, seed: int, data: st.DataObject) -> None:
    mask = data.draw(masks_in(space))
    flat = st.lists(st.floats(-5, 5), min_size=8 * space.n_levels, max_size=8 * space.n_levels)
    weights = data.draw(st.none() | flat)
    array = None if weights is None else np.array(weights).reshape(8, -1)[: space.n_layers]
    result = repaired(space, mask, np.random.default_rng(seed), array)
    assert space.is_at_budget(result)
    if space.n_levels == 1:
        before, after = set(mask.layers), set(result.layers)
        assert before <= after or after <= before
    if space.is_at_budget(mask):
        assert result == mask


@laws
@given(some_spaces(8), seeds, st.data())
def test_a_repair_leaves_fixed_layers_alone(
    space: SearchSpace, seed: int, data: st.DataObject
) -> None:
    mask = data.draw(masks_in(space))
    layers, levels = st.integers(0, space.n_layers - 1), st.integers(0, space.n_levels)
    fixed = data.draw(st.dictionaries(layers, levels))
    result = repaired(space, mask, np.random.default_rng(seed), fixed=fixed)
    assert all(result.levels[layer] == level for layer, level in fixed.items())
    each = (0, *space.savings)
    fewest = sum(each[level] for level in fixed.values())
    most = fewest + (space.n_layers - len(fixed)) * space.savings[-1]
    saved = space.saved(result)
    assert saved >= min(space.least, most)
    assert saved < max(space.least, fewest) + max(space.steps)


def test_a_repair_follows_the_weights() -> None:
    rng = np.random.default_rng(0)
    space = SearchSpace(4, 2)
    weights = np.array([[3.0], [0.0], [0.0], [-3.0]])
    for text in ("1111", "0000"):
        masks = [repaired(space, LayerMask.parse(text), rng, weights) for _ in range(300)]
        share = np.mean([mask.levels for mask in masks], axis=0)
        assert share[0] > 0.9
        assert share[3] < 0.1
        assert abs(share[1] - share[2]) < 0.15


@laws
@given(some_spaces(6), seeds, st.data())
def test_unseen_masks_run_out_exactly_when_all_are_taken(
    space: SearchSpace, seed: int, data: st.DataObject
) -> None:
    pairs = st.tuples(st.integers(0, space.n_layers - 1), st.integers(1, space.n_levels))
    without = data.draw(st.frozensets(pairs))
    size = data.draw(st.integers(0, space.least))
    rng = np.random.default_rng(seed)
    everything = {mask for mask in masks_within(space) if space.size(mask) == size}
    allowed = {mask for mask in everything if without.isdisjoint(enumerate(mask))}
    masks = MasksOfSize(space, size, without)
    assert (masks.n, set(masks)) == (len(allowed), allowed)
    taken = everything - allowed
    while (mask := random_unseen(space, size, taken, rng, without)) is not None:
        assert mask in allowed - taken
        assert n_left(space, size, taken, without) == len(allowed - taken)
        taken.add(mask)
    assert taken == everything


def test_random_masks_are_uniform() -> None:
    rng = np.random.default_rng(0)
    several = SearchSpace(3, 5, savings=(2, 3), choices=(4, 2, 1))
    for space in (SearchSpace(5, 2), several):
        everything = [mask for mask in masks_within(space) if space.is_at_budget(mask)]
        counts = dict.fromkeys(everything, 0)
        for _ in range(200 * len(everything)):
            counts[random_mask(space, space.least, rng)] += 1
        assert min(counts.values()) > 140
        left = everything[::4]
        taken = set(everything) - set(left)
        n = 200 * len(left)
        unseen = [random_unseen(space, space.least, taken, rng) for _ in range(n)]
        assert all(unseen.count(mask) > 130 for mask in left)


@laws
@given(some_spaces(8), seeds, st.data())
def test_neighbours_are_new_masks_at_the_budget_until_none_is_left(
    space: SearchSpace, seed: int, data: st.DataObject
) -> None:
    at_budget = [mask for mask in masks_within(space) if space.is_at_budget(mask)]
    mask = data.draw(st.sampled_from(at_budget))
    rng = np.random.default_rng(seed)
    taken = {mask}
    while (neighbour := random_neighbour(space, mask, taken, rng)) is not None:
        assert space.is_at_budget(neighbour)
        assert neighbour not in taken
        taken.add(neighbour)
    if space.n_levels == 1:
        one_switch = {other for other in at_budget if len({*mask.layers} ^ {*other.layers}) <= 2}
        assert taken == one_switch


EVEN = [(8, (1, 2, 4), 1 / 2), (8, (1, 2, 4), 1 / 4), (9, (1, 3), 1 / 3)]
"""KV heads, numbers, and a budget at which all layers have the same number: nothing is a switch."""


@pytest.mark.parametrize(("n_kv_heads", "numbers", "fraction"), EVEN)
def test_an_even_mask_has_neighbours(
    n_kv_heads: int, numbers: tuple[int, ...], fraction: float
) -> None:
    shape = ModelShape(30, n_kv_heads, n_kv_heads, 8, 64, 2)
    space = Budget(kv_bytes_fraction=fraction).space(shape, numbers)
    even = next(m for n in range(3) if space.is_at_budget(m := LayerMask((n + 1,) * 30)))
    neighbour = random_neighbour(space, even, {even}, np.random.default_rng(0))
    assert neighbour is not None
    changed = sum(new != old for old, new in zip(even, neighbour, strict=True))
    assert 2 <= changed <= 8


def test_all_masks_of_one_level_come_in_the_order_of_their_layers() -> None:
    assert [*MasksOfSize(SearchSpace(6, 3), 3)] == all_masks(6, 3)


def test_masks_of_a_large_model_are_counted_and_drawn_without_a_list() -> None:
    space = SearchSpace(80, 280, savings=(4, 6, 7), choices=(8, 4, 2, 1))
    masks = MasksOfSize(space, 280)
    assert masks.n > 10**40
    assert space.is_at_budget(masks.draw(np.random.default_rng(0)))
