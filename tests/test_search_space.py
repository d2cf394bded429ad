"""What is at the budget, by the definition and by brute force."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from selector_workers import spaces

from mqasearch.budget import MOST_UNITS, TOLERATED, Budget, DecodeTimes
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


@st.composite
def decode_times(draw: st.DrawFn) -> DecodeTimes:
    """Times of 8, 4, 2 and 1 KV heads, each shorter than the one before."""
    original = draw(st.floats(50.0, 200.0))
    some = draw(st.lists(st.sampled_from(range(10, 91, 3)), min_size=2, max_size=2, unique=True))
    shares = [1.0, *(percent / 100 for percent in sorted(some, reverse=True)), 0.05]
    ms = {heads: original * share for heads, share in zip((8, 4, 2, 1), shares, strict=True)}
    return DecodeTimes(2048, 4, ms)


@laws
@given(decode_times(), st.floats(0.06, 0.99), st.data())
def test_a_mask_at_a_budget_in_time_is_predicted_to_be_fast_enough(
    times: DecodeTimes, share: float, data: st.DataObject
) -> None:
    """And a mask that is not must be within the rounding of what a layer saves."""
    numbers = (1, 2, 4)
    budget = Budget(decode_ms=share * times.unconverted_ms, times=times)
    space = budget.space(EIGHT, numbers)
    mask = data.draw(masks_of(space))
    excess = budget.excess(mask.kv_heads(EIGHT, numbers), EIGHT)
    if space.saved(mask) >= space.least:
        assert excess <= 1e-4 * (times.unconverted_ms - times.ms[1])
    else:
        assert excess > -(times.unconverted_ms - times.ms[1]) / MOST_UNITS


@laws
@given(decode_times(), st.floats(0.06, 0.99), st.integers(0, 32))
def test_with_one_number_a_time_means_a_number_of_layers(
    times: DecodeTimes, share: float, n_layers: int
) -> None:
    budget = Budget(decode_ms=share * times.unconverted_ms, times=times)
    space = budget.space(EIGHT, [1])
    assert space == SearchSpace(32, space.least)
    mask = LayerMask.of(range(n_layers), 32)
    excess = budget.excess(mask.kv_heads(EIGHT), EIGHT)
    tolerated = TOLERATED * (times.unconverted_ms - times.ms[1])
    assert (n_layers >= space.least) == (excess <= tolerated) or abs(excess - tolerated) < 1e-9


@laws
@given(decode_times(), st.sampled_from([4, 2, 1]))
def test_a_time_that_was_measured_with_all_layers_alike_is_met_by_them(
    times: DecodeTimes, number: int
) -> None:
    """Exactly with one number; with two, what a layer saves is rounded down to a unit."""
    rounded = {heads: float(f"{ms:.6g}") for heads, ms in times.ms.items()}
    budget = Budget(decode_ms=rounded[number], times=DecodeTimes(2048, 4, rounded))
    alike = LayerMask((1,) * 32)
    assert budget.space(EIGHT, [number]).is_at_budget(alike)
    space = budget.space(EIGHT, sorted({number, 1}))
    assert space.savings[-1] <= MOST_UNITS
    assert space.saved(alike) > space.least - 32


def test_the_predicted_time_is_the_measured_one_if_all_layers_are_alike() -> None:
    times = DecodeTimes(2048, 4, {8: 80.0, 4: 50.0, 1: 20.0})
    for heads, ms in times.ms.items():
        assert times.predicted_ms((heads,) * 32) == pytest.approx(ms)
    assert times.predicted_ms((8,) * 16 + (1,) * 16) == pytest.approx(50)


@pytest.mark.parametrize(
    ("ms", "decode_ms", "numbers", "message"),
    [
        (
            {8: 80, 1: 20},
            90,
            [1],
            "90 ms per token cannot be met by .* takes 80 if no layer has fewer",
        ),
        ({8: 80, 1: 20}, 19, [1], "and 20 if every layer has 1; choose a time between the two"),
        ({8: 80, 1: 20}, 40, [1, 4], "no time was measured with 4 KV heads .* with 1, 8"),
        ({4: 80, 1: 20}, 40, [1], "no time was measured with 8 KV heads"),
        ({16: 90, 8: 80, 1: 20}, 40, [1], "go up to 16 KV heads, and the model has 8"),
        ({8: 80, 4: 80.5, 1: 20}, 40, [1, 4], "with 4 .* hardly faster than with 8"),
        ({8: 80, 2: 20.1, 1: 20}, 40, [1, 2], "with 1 .* than with 2 .* leave 1 out of kv_heads"),
        ({8: 80, 1: 81}, 40, [1], "with 1 .* hardly faster than with 8"),
    ],
)
def test_times_that_no_budget_can_come_from_are_refused(
    ms: dict[int, float], decode_ms: float, numbers: list[int], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        Budget(decode_ms=decode_ms, times=DecodeTimes(2048, 4, ms)).space(EIGHT, numbers)


def test_a_budget_is_of_one_kind() -> None:
    times = DecodeTimes(2048, 4, {8: 80.0, 1: 20.0})
    for wrong in (
        {},
        {"n_layers": 1, "kv_bytes_fraction": 0.5},
        {"n_layers": 1, "decode_ms": 40.0, "times": times},
        {"decode_ms": 40.0},
        {"n_layers": 1, "times": times},
    ):
        with pytest.raises(ValueError, match="give "):
            Budget(**wrong)
    assert len({times, DecodeTimes(2048, 4, {8: 80.0, 1: 20.0})}) == 1
