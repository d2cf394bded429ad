"""Masks, shapes and budgets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqasearch.budget import Budget
from mqasearch.errors import MaskError
from mqasearch.mask import LayerMask, ModelShape

masks = st.lists(st.booleans(), min_size=1, max_size=40).map(lambda flags: LayerMask(tuple(flags)))


@given(masks)
def test_text_and_layers_say_the_same_as_the_flags(mask: LayerMask) -> None:
    assert LayerMask.parse(str(mask)) == mask
    assert LayerMask.of(mask.layers, len(mask)) == mask
    assert mask.n_converted == len(mask.layers) == str(mask).count("1")


@given(st.data())
def test_shared_prefix_is_where_two_masks_first_differ(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 20))
    one, two = (
        LayerMask(tuple(data.draw(st.lists(st.booleans(), min_size=n, max_size=n))))
        for _ in range(2)
    )
    shared = one.shared_prefix(two)
    assert one.levels[:shared] == two.levels[:shared]
    assert shared == n or one.levels[shared] != two.levels[shared]


@given(masks)
def test_the_cache_shrinks_by_what_each_converted_layer_gives_up(mask: LayerMask) -> None:
    shape = ModelShape(len(mask), 8, 4, 16, 128, 2)
    saved = shape.kv_bytes_per_token(shape.original) - shape.kv_bytes_per_token(
        mask.kv_heads(shape)
    )
    assert saved == mask.n_converted * 3 * 2 * 16 * 2


@given(masks, st.sampled_from([1, 2, 4, 8]))
def test_a_rank_holds_its_share_and_at_least_one_head_of_each_layer(
    mask: LayerMask, n_ranks: int
) -> None:
    shape = ModelShape(len(mask), 8, 4, 16, 128, 2)
    kv_heads = mask.kv_heads(shape)
    one_head = 2 * 16 * 2
    held = shape.kv_bytes_per_rank(kv_heads, n_ranks)
    assert held >= max(shape.kv_bytes_per_token(kv_heads) / n_ranks, len(mask) * one_head)
    assert held == sum(shape.kv_bytes_per_rank((heads,), n_ranks) for heads in kv_heads)
    full = shape.kv_bytes_per_rank(shape.original, n_ranks)
    assert full == len(mask) * one_head * max(4 // n_ranks, 1)
    assert (held == full) == (not mask.n_converted or n_ranks >= 4)


@pytest.mark.parametrize("text", ["", "0-1", "abc", "0²1"])
def test_a_malformed_mask_is_refused(text: str) -> None:
    with pytest.raises(MaskError, match="row of digits"):
        LayerMask.parse(text)


def test_a_layer_outside_the_model_is_named(shape: ModelShape) -> None:
    with pytest.raises(MaskError, match=r"\[6\].*0 to 5"):
        LayerMask.of([0, 6], shape.n_layers)
    with pytest.raises(MaskError, match="3 layers, the model 6"):
        LayerMask.empty(3).kv_heads(shape)


@given(st.integers(1, 12), st.floats(0.3, 0.99))
def test_a_budget_in_bytes_takes_the_fewest_layers_that_meet_it(
    n_layers: int, fraction: float
) -> None:
    shape = ModelShape(n_layers, 8, 8, 16, 128, 2)
    budget = Budget(kv_bytes_fraction=fraction)
    n = budget.space(shape).least
    assert budget.excess(LayerMask.of(range(n), n_layers).kv_heads(shape), shape) <= 1e-9
    if n:
        fewer = LayerMask.of(range(n - 1), n_layers).kv_heads(shape)
        assert budget.excess(fewer, shape) > 0


def test_a_budget_in_layers_is_met_by_that_many(shape: ModelShape) -> None:
    budget = Budget(n_layers=2)
    excess = [budget.excess(LayerMask.of(range(n), 6).kv_heads(shape), shape) for n in range(4)]
    assert excess == [2, 1, 0, -1]


def test_a_budget_is_one_thing() -> None:
    with pytest.raises(ValueError, match="exactly one"):
        Budget()
    with pytest.raises(ValueError, match="exactly one"):
        Budget(2, 0.5)
