import torch
from hypothesis import given
from hypothesis import strategies as st

from mqasearch.forward.batches import Plan, plan_of
from mqasearch.forward.plan_runner import shared_layers, walk
from mqasearch.forward.states import StateStore

N_LAYERS = 6
MASKS = st.lists(st.integers(1, 2), min_size=N_LAYERS, max_size=N_LAYERS).map(tuple)


def small_plan(token: int = 1) -> Plan:
    pairs = [((token, 2, 3), (4, 5)), ((token + 5, 2, 6), (7, 8, 9))]
    return plan_of(pairs, max_length=50, batch_tokens=4, row_tokens=4)


def run(store: StateStore, plan: Plan, kv_heads: tuple[int, ...], n_bytes: int) -> int:
    """What a runner does with a store; returns where it started."""
    start = store.deepest(plan, kv_heads)
    if start:
        store.states(plan, kv_heads[:start])
    boundaries = store.promise(plan, kv_heads, start, n_bytes)
    assert all(start < boundary < N_LAYERS for boundary in boundaries)
    for _ in plan.batches:
        for boundary in boundaries:
            store.keep(plan, kv_heads[:boundary], torch.tensor(kv_heads[:boundary]))
    return start


@given(masks=st.lists(MASKS, max_size=30), budget=st.integers(0, 400), size=st.integers(1, 60))
def test_the_budget_is_kept_and_what_is_found_is_what_was_put(
    masks: list[tuple[int, ...]], budget: int, size: int
) -> None:
    store, plans = StateStore(budget, N_LAYERS), [small_plan(1), small_plan(2)]
    for number, kv_heads in enumerate(masks):
        plan = plans[number % 2]
        start = run(store, plan, kv_heads, size)
        if start:
            states = store.states(plan, kv_heads[:start])
            assert [tuple(state.tolist()) for state in states] == [kv_heads[:start]] * len(states)
        assert store.used <= budget


@given(masks=st.lists(MASKS, max_size=30), most=st.integers(1, 12))
def test_no_more_boundaries_are_kept_than_allowed(masks: list[tuple[int, ...]], most: int) -> None:
    store, plans = StateStore(10**6, N_LAYERS, most=most), [small_plan(1), small_plan(2)]
    for number, kv_heads in enumerate(masks):
        run(store, plans[number % 2], kv_heads, 10)
        assert store.used <= 10 * most


def test_a_mask_starts_where_it_parts_from_the_kept_ones() -> None:
    store, plan = StateStore(10**6, N_LAYERS), small_plan()
    assert run(store, plan, (2, 2, 2, 2, 2, 2), 10) == 0
    assert run(store, plan, (2, 2, 2, 1, 2, 2), 10) == 3
    assert run(store, plan, (2, 2, 2, 1, 1, 2), 10) == 4
    assert run(store, small_plan(2), (2, 2, 2, 1, 1, 2), 10) == 0


def test_the_common_beginning_outlives_a_crowd_of_rare_ones() -> None:
    store, plan = StateStore(150, N_LAYERS), small_plan()
    run(store, plan, (2,) * N_LAYERS, 10)
    for layer in list(range(N_LAYERS)) * 4:
        kv_heads = tuple(1 if layer == number else 2 for number in range(N_LAYERS))
        assert run(store, plan, kv_heads, 10) >= layer


def test_a_budget_for_a_few_boundaries_keeps_the_deep_ones_of_what_comes_again() -> None:
    store, plan = StateStore(20, N_LAYERS), small_plan()
    for _ in range(3):
        run(store, plan, (2,) * N_LAYERS, 10)
    kept = [b for b in range(N_LAYERS + 1) if store.deepest(plan, (2,) * b + (1,) * (6 - b)) == b]
    assert max(kept) == 5


def test_a_run_that_fails_leaves_nothing_behind() -> None:
    store, plan = StateStore(10**6, N_LAYERS), small_plan()
    kv_heads = (2,) * N_LAYERS
    assert len(plan.batches) > 1
    for boundary in store.promise(plan, kv_heads, 0, 10):
        store.keep(plan, kv_heads[:boundary], torch.zeros(1))
    store.withdraw(plan, kv_heads)
    assert store.used == 0
    assert store.deepest(plan, kv_heads) == 0


@given(masks=st.sets(MASKS, min_size=1, max_size=20))
def test_a_walk_starts_at_the_deepest_state_and_every_state_is_there(
    masks: set[tuple[int, ...]],
) -> None:
    ordered = sorted(masks)
    held: dict[tuple[int, ...], bool] = {(): True}
    for number, (kv_heads, (start, wanted)) in enumerate(zip(ordered, walk(ordered), strict=True)):
        assert start == max((shared_layers(kv_heads, m) for m in ordered[:number]), default=0)
        assert kv_heads[:start] in held
        assert all(boundary > start for boundary in wanted)
        held |= {kv_heads[:boundary]: True for boundary in wanted}
    resumed = {m[:s] for m, (s, _) in zip(ordered, walk(ordered), strict=True)}
    assert set(held) - {()} == resumed - {()}
