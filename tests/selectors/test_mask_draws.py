"""Random masks, neighbours and repairs."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from selector_workers import all_masks

from mqasearch.mask import LayerMask
from mqasearch.selectors.draw import (
    n_left,
    random_mask,
    random_neighbour,
    random_unseen,
    repaired,
)

laws = settings(max_examples=50, deadline=None, derandomize=True)
masks = st.lists(st.booleans(), min_size=1, max_size=8).map(lambda f: LayerMask(tuple(f)))


@laws
@given(masks, st.integers(0, 1000), st.data())
def test_a_repair_reaches_the_number_and_only_drops_or_only_adds(
    mask: LayerMask, seed: int, data: st.DataObject
) -> None:
    n_converted = data.draw(st.integers(0, len(mask)))
    weights = data.draw(st.none() | st.lists(st.floats(-5, 5), min_size=8, max_size=8))
    array = None if weights is None else np.array(weights[: len(mask)])
    fixed = repaired(mask, n_converted, np.random.default_rng(seed), array)
    assert fixed.n_converted == n_converted
    before, after = set(mask.layers), set(fixed.layers)
    assert before <= after or after <= before


@laws
@given(masks, st.integers(0, 1000), st.data())
def test_a_repair_leaves_fixed_layers_alone(
    mask: LayerMask, seed: int, data: st.DataObject
) -> None:
    n_converted = data.draw(st.integers(0, len(mask)))
    fixed = data.draw(st.dictionaries(st.integers(0, len(mask) - 1), st.booleans()))
    result = repaired(mask, n_converted, np.random.default_rng(seed), fixed=fixed)
    assert all(result.flags[layer] == flag for layer, flag in fixed.items())
    fewest, most = sum(fixed.values()), len(mask) - sum(not flag for flag in fixed.values())
    assert result.n_converted == min(max(n_converted, fewest), most)


def test_a_repair_follows_the_weights() -> None:
    rng = np.random.default_rng(0)
    weights = np.array([3.0, 0.0, 0.0, -3.0])
    dropped = [repaired(LayerMask.parse("1111"), 2, rng, weights).flags for _ in range(300)]
    added = [repaired(LayerMask.parse("0000"), 2, rng, weights).flags for _ in range(300)]
    for flags in (dropped, added):
        share = np.mean(flags, axis=0)
        assert share[0] > 0.9
        assert share[3] < 0.1
        assert abs(share[1] - share[2]) < 0.15


@laws
@given(st.integers(1, 6), st.integers(0, 1000), st.data())
def test_unseen_masks_run_out_exactly_when_all_are_taken(
    n_layers: int, seed: int, data: st.DataObject
) -> None:
    without = data.draw(st.frozensets(st.integers(0, n_layers - 1)))
    n_free = n_layers - len(without)
    n_converted = data.draw(st.integers(0, n_free))
    rng = np.random.default_rng(seed)
    everything = set(all_masks(n_layers, n_converted))
    allowed = {mask for mask in everything if without.isdisjoint(mask.layers)}
    taken = everything - allowed
    while (mask := random_unseen(n_layers, n_converted, taken, rng, without)) is not None:
        assert mask in allowed - taken
        assert n_left(n_layers, n_converted, taken, without) == len(allowed - taken)
        taken.add(mask)
    assert taken == everything
    assert len(allowed) == math.comb(n_free, n_converted)


def test_random_masks_are_uniform() -> None:
    rng = np.random.default_rng(0)
    everything = all_masks(5, 2)
    counts = dict.fromkeys(everything, 0)
    for _ in range(2000):
        counts[random_mask(5, 2, rng)] += 1
    assert min(counts.values()) > 140
    left = everything[::4]
    unseen = [random_unseen(5, 2, set(everything) - set(left), rng) for _ in range(600)]
    assert all(unseen.count(mask) > 130 for mask in left)


@laws
@given(masks, st.integers(0, 1000))
def test_neighbours_are_all_masks_one_swap_away(mask: LayerMask, seed: int) -> None:
    rng = np.random.default_rng(seed)
    taken = {mask}
    while (neighbour := random_neighbour(mask, taken, rng)) is not None:
        assert len(set(mask.layers) - set(neighbour.layers)) == 1
        assert neighbour.n_converted == mask.n_converted
        taken.add(neighbour)
    assert len(taken) == 1 + mask.n_converted * (len(mask) - mask.n_converted)
