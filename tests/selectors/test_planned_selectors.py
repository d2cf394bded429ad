"""What each plan finds, against plain reference implementations and brute force."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from selector_workers import (
    Loss,
    Simulation,
    additive_loss,
    all_masks,
    masks_within,
    pairwise_loss,
    spaces,
)

from mqasearch.mask import LayerMask
from mqasearch.search_space import SearchSpace
from mqasearch.selectors import History, MaskTrial, Selector, selector_of

N_LAYERS = 8
laws = settings(max_examples=25, deadline=None, derandomize=True)
seeds = st.integers(0, 10**6)
sizes = st.integers(1, N_LAYERS)


def run(name: str, n_converted: int, loss: Loss, **parameters: object) -> Simulation:
    return Simulation(
        lambda: selector_of(name, SearchSpace(N_LAYERS, n_converted), 0, **parameters), loss
    ).run()


def plain_greedy(n_converted: int, loss: Loss) -> LayerMask:
    """Forward selection as anybody would write it."""
    mask = LayerMask.empty(N_LAYERS)
    while mask.n_converted < n_converted:
        others = [layer for layer in range(N_LAYERS) if layer not in mask.layers]
        mask = min((mask.with_layers(layer) for layer in others), key=loss)
    return mask


@laws
@given(seeds, sizes)
def test_exact_greedy_is_forward_selection(seed: int, n_converted: int) -> None:
    loss = pairwise_loss(N_LAYERS, seed)
    greedy = run("greedy", n_converted, loss, lazy=False)
    assert greedy.best == plain_greedy(n_converted, loss)
    rounds = [N_LAYERS - already for already in range(n_converted)]
    assert len(greedy.masks) == 1 + sum(rounds)


@laws
@given(seeds, sizes)
def test_lazy_greedy_is_exact_and_cheap_where_harms_add_up(seed: int, n_converted: int) -> None:
    loss = additive_loss(N_LAYERS, seed)
    lazy = run("greedy", n_converted, loss)
    assert lazy.best == run("greedy", n_converted, loss, lazy=False).best
    # One evaluation a round: the top of the queue is confirmed at once. (Sums of floats may tie.)
    assert len(lazy.masks) <= 1 + N_LAYERS + 2 * (n_converted - 1)


@laws
@given(seeds, sizes)
def test_lazy_greedy_never_scores_more_than_exact_greedy(seed: int, n_converted: int) -> None:
    loss = pairwise_loss(N_LAYERS, seed, strength=2.0)
    lazy, exact = (run("greedy", n_converted, loss, lazy=lazy) for lazy in (True, False))
    assert len(lazy.masks) <= len(exact.masks)


@laws
@given(seeds, sizes)
def test_sensitivity_is_optimal_where_harms_add_up(seed: int, n_converted: int) -> None:
    loss = additive_loss(N_LAYERS, seed)
    assert run("sensitivity", n_converted, loss).best == min(
        all_masks(N_LAYERS, n_converted), key=loss
    )


@laws
@given(seeds, sizes)
def test_sensitivity_scores_each_layer_and_each_prefix_of_the_ranking(
    seed: int, n_converted: int
) -> None:
    loss = pairwise_loss(N_LAYERS, seed)
    masks = run("sensitivity", n_converted, loss).masks
    singles, prefixes = masks[:N_LAYERS], masks[N_LAYERS:]
    assert {mask.layers for mask in singles} == {(layer,) for layer in range(N_LAYERS)}
    ranking = [mask.layers[0] for mask in sorted(singles, key=loss)]
    assert [set(mask.layers) for mask in prefixes] == [
        set(ranking[:length]) for length in range(n_converted, 1, -1)
    ]


@laws
@given(seeds, sizes)
def test_greedy_pays_nothing_for_what_sensitivity_knows(seed: int, n_converted: int) -> None:
    loss = additive_loss(N_LAYERS, seed)
    sensitivity = set(run("sensitivity", n_converted, loss).masks)
    assert set(run("greedy", n_converted, loss).masks) <= {
        *sensitivity,
        LayerMask.empty(N_LAYERS),
    }


@pytest.mark.parametrize(
    ("parameters", "order"),
    [
        ({}, [7, 5, 3, 1, 6, 4, 2, 0]),
        ({"start": "front"}, [0, 2, 4, 6, 1, 3, 5, 7]),
        ({"start": "front", "stride": 3}, [0, 3, 6, 1, 4, 7, 2, 5]),
        ({"stride": 1}, [7, 6, 5, 4, 3, 2, 1, 0]),
        ({"stride": 20}, [7, 6, 5, 4, 3, 2, 1, 0]),
    ],
)
def test_alternating_walks_one_layer_further_at_each_probe(
    parameters: dict[str, object], order: list[int]
) -> None:
    for n_converted in range(1, N_LAYERS + 1):
        masks = run("alternating", n_converted, additive_loss(N_LAYERS, 0), **parameters).masks
        assert [set(mask.layers) for mask in masks] == [
            set(order[:length]) for length in range(1, n_converted + 1)
        ]


@laws
@given(st.lists(st.floats(0, 1), min_size=N_LAYERS, max_size=N_LAYERS), sizes, st.floats(0, 5))
def test_consecutive_finds_the_longest_run_within_the_tolerance(
    harm: list[float], n_converted: int, tolerance: float
) -> None:
    def loss(mask: LayerMask) -> float:
        return 3 + sum(harm[layer] for layer in mask.layers)

    simulation = run("consecutive", n_converted, loss, tolerance=tolerance)
    runs = [LayerMask.of(range(N_LAYERS - n, N_LAYERS), N_LAYERS) for n in range(n_converted + 1)]
    assert simulation.masks[0] == simulation.best == runs[n_converted]
    allowed = loss(runs[0]) + tolerance
    longest = max(n for n, mask in enumerate(runs) if loss(mask) <= allowed)
    assert runs[longest] in simulation.masks
    assert longest == n_converted or runs[longest + 1] in simulation.masks
    assert len(simulation.masks) <= 2 + n_converted.bit_length()


@laws
@given(seeds, st.integers(1, 4))
def test_exhaustive_finds_the_optimum_and_scores_nothing_else(seed: int, n_workers: int) -> None:
    loss = pairwise_loss(6, seed)
    simulation = Simulation(
        lambda: selector_of("exhaustive", SearchSpace(6, 3)), loss, n_workers, seed
    ).run()
    assert simulation.masks == all_masks(6, 3)
    assert simulation.best == min(all_masks(6, 3), key=loss)


def start(selector: Selector, loss: Loss, until: int) -> list[LayerMask]:
    """Finish ``until`` trials one by one, then start trials without finishing them, till none."""
    trials: list[MaskTrial] = []
    while wanted := selector.wants(History(trials)).masks:
        mask, number = wanted[0], len(trials)
        if number < until:
            state = "complete" if selector.space.is_at_budget(mask) else "pruned"
            trials.append(MaskTrial(number, mask, state, loss(mask)))
        else:
            trials.append(MaskTrial(number, mask, "running", math.nan))
    assert len(trials) > until
    return [trial.mask for trial in trials[until:]]


def test_greedy_works_ahead_along_the_queue_below_the_budget() -> None:
    loss = additive_loss(N_LAYERS, 1)
    ranking = sorted(range(N_LAYERS), key=lambda layer: loss(LayerMask.of([layer], N_LAYERS)))
    ahead = start(selector_of("greedy", SearchSpace(N_LAYERS, 5)), loss, until=1 + N_LAYERS)
    assert [set(mask.layers) for mask in ahead] == [set(ranking[:n]) for n in (2, 3, 4)]


def test_sensitivity_works_ahead_while_the_last_layers_run() -> None:
    loss = additive_loss(N_LAYERS, 1)
    first = range(N_LAYERS - 2)
    ranking = sorted(first, key=lambda layer: loss(LayerMask.of([layer], N_LAYERS)))
    ahead = start(selector_of("sensitivity", SearchSpace(N_LAYERS, 4)), loss, until=len(first))
    assert [mask.layers for mask in ahead[:2]] == [(6,), (7,)]
    assert [set(mask.layers) for mask in ahead[2:]] == [set(ranking[:3]), set(ranking[:2])]


def test_a_mask_that_nobody_wants_stays_below_the_budget() -> None:
    for n_converted, left in ((2, 2), (4, 3)):  # below a budget of two layers nothing is left
        selector = selector_of("greedy", SearchSpace(N_LAYERS, n_converted))
        started = start(selector, additive_loss(N_LAYERS, 0), until=0)
        running = [MaskTrial(n, mask, "running", math.nan) for n, mask in enumerate(started)]
        for _ in range(20):
            spare = selector.spare(History(running))
            assert spare.n_converted <= left
            running.append(MaskTrial(len(running), spare, "running", math.nan))


def test_a_layer_that_cannot_be_scored_is_never_chosen() -> None:
    loss = additive_loss(N_LAYERS, 2)
    best = LayerMask.of([min(range(N_LAYERS), key=lambda n: loss(LayerMask.of([n], 8)))], 8)
    for name in ("greedy", "sensitivity"):
        simulation = Simulation(
            lambda name=name: selector_of(name, SearchSpace(8, 3)), loss, invalid=[best]
        )
        simulation.run()
        assert not set(best.layers) & set(simulation.best.layers)


def test_a_plan_that_leads_nowhere_goes_on_at_random() -> None:
    singles = all_masks(N_LAYERS, 1)
    simulation = Simulation(
        lambda: selector_of("greedy", SearchSpace(N_LAYERS, 2)),
        pairwise_loss(N_LAYERS, 0),
        invalid=singles,
    ).run()
    assert len(simulation.at_budget) == 1


def test_a_dead_workers_mask_is_the_next_one_wanted() -> None:
    selector = selector_of("greedy", SearchSpace(N_LAYERS, 3))
    masks = start(selector, additive_loss(N_LAYERS, 0), until=0)[:4]
    left = [MaskTrial(n, mask, "running", math.nan) for n, mask in enumerate(masks) if n != 2]
    assert selector.wants(History(left, 4)).masks[0] == masks[2]


@laws
@given(st.composite(spaces)(8), seeds)
def test_sensitivity_is_optimal_with_levels_where_harms_add_up(
    space: SearchSpace, seed: int
) -> None:
    """Also at budgets that one layer alone could meet."""
    loss = additive_loss(space.n_layers, seed, space.n_levels)
    found = Simulation(lambda: selector_of("sensitivity", space), loss).run()
    at_budget = [mask for mask in masks_within(space) if space.is_at_budget(mask)]
    assert loss(found.best) == pytest.approx(min(map(loss, at_budget)))


def test_gp_scores_masks_of_several_layers_where_one_alone_is_at_the_budget() -> None:
    space = SearchSpace(12, 7, savings=(4, 6, 7), choices=(8, 4, 2, 1))
    loss = pairwise_loss(12, 0, n_levels=3)
    gp = Simulation(lambda: selector_of("gp", space, n_masks=10), loss).run()
    assert sum(mask.n_converted > 1 for mask in gp.at_budget) == 10
