"""What every selector promises, whatever its idea: one suite for the seam ``Selector``."""

import doctest
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from selector_workers import (
    Loss,
    Simulation,
    additive_loss,
    masks_within,
    pairwise_loss,
    spaces,
)

from mqasearch.errors import UserError
from mqasearch.mask import LayerMask
from mqasearch.search_space import SearchSpace
from mqasearch.selectors import PLANNED, SELECTORS, History, Selector, selector_of

every_selector = pytest.mark.parametrize("name", SELECTORS)
selectors_that_end = pytest.mark.parametrize("name", sorted(PLANNED))
few = settings(max_examples=15, deadline=None, derandomize=True)
seeds = st.integers(0, 10**6)
probabilities = st.floats(0, 0.5)


ONE_LEVEL = ("alternating", "consecutive")
"""Selectors that refuse several levels."""

some_spaces = st.composite(spaces)


def suited(name: str, space: SearchSpace) -> SearchSpace:
    """The space, or flags for a selector that takes no others."""
    if name not in ONE_LEVEL or space.n_levels == 1:
        return space
    return SearchSpace(space.n_layers, min(space.least, space.n_layers))


def loss_on(space: SearchSpace, seed: int) -> Loss:
    return pairwise_loss(space.n_layers, seed, n_levels=space.n_levels)


@selectors_that_end
@pytest.mark.parametrize(("n_layers", "n_converted"), [(6, 3), (9, 4), (12, 2)])
def test_a_plan_takes_about_as_many_trials_as_it_says(
    name: str, n_layers: int, n_converted: int
) -> None:
    selector = selector_of(name, SearchSpace(n_layers, n_converted))
    expected = selector.expected_trials()
    assert expected is not None
    original = LayerMask.empty(n_layers)
    simulation = Simulation(
        lambda: selector, additive_loss(n_layers, seed=1), enqueued=[original]
    ).run()
    assert expected / 2 <= len(simulation.masks) <= 2 * expected


@pytest.mark.long
@every_selector
@few
@given(some_spaces(5), seeds, st.integers(1, 4))
def test_every_mask_within_the_budget_comes_once_before_any_comes_twice(
    name: str, space: SearchSpace, seed: int, n_workers: int
) -> None:
    space = suited(name, space)
    masks = masks_within(space)
    simulation = Simulation(
        lambda: selector_of(name, space, seed), loss_on(space, seed), n_workers, seed
    ).run(len(masks) + 3)
    assert sorted(map(str, simulation.masks[: len(masks)])) == sorted(map(str, masks))
    assert set(simulation.masks) == set(masks)


@pytest.mark.long
@every_selector
@few
@given(some_spaces(5), seeds, st.integers(1, 4), st.data())
def test_invalid_masks_never_come_again(
    name: str, space: SearchSpace, seed: int, n_workers: int, data: st.DataObject
) -> None:
    space = suited(name, space)
    masks = masks_within(space)
    invalid = set(data.draw(st.lists(st.sampled_from(masks), unique=True)))
    simulation = Simulation(
        lambda: selector_of(name, space, seed),
        loss_on(space, seed),
        n_workers,
        seed,
        invalid=invalid,
    ).run(len(masks))
    assert sorted(map(str, simulation.masks)) == sorted(map(str, masks))


@pytest.mark.long
@every_selector
@few
@given(some_spaces(6), seeds, st.integers(1, 4), probabilities)
def test_the_same_history_gives_the_same_answer_to_whoever_asks(
    name: str, space: SearchSpace, seed: int, n_workers: int, kill: float
) -> None:
    """Whatever an instance was asked before: in order, against the order, or nothing."""
    space = suited(name, space)
    kept = selector_of(name, space, seed)
    simulation = Simulation(lambda: kept, loss_on(space, seed), n_workers, seed, kill).run(12)
    for history, wants in reversed(simulation.answers):
        assert kept.wants(history) == wants
        assert selector_of(name, space, seed).wants(history) == wants


_IN_ANOTHER_PROCESS = """
import json, sys
from selector_workers import Simulation, pairwise_loss
from mqasearch.search_space import SearchSpace
from mqasearch.selectors import SELECTORS, selector_of
print(json.dumps({
    name: [str(mask) for mask in Simulation(
        lambda: selector_of(name, SearchSpace(7, 3), 5), pairwise_loss(7, 5), 3, 5, kill=0.2
    ).run(25).masks]
    for name in SELECTORS
}))
"""


@pytest.mark.processes
def test_another_process_with_other_hashes_proposes_the_same() -> None:
    here = {
        name: Simulation(
            lambda name=name: selector_of(name, SearchSpace(7, 3), 5),
            pairwise_loss(7, 5),
            3,
            5,
            0.2,
        )
        for name in SELECTORS
    }
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    there = subprocess.run(
        [sys.executable, "-c", _IN_ANOTHER_PROCESS],
        check=True,
        capture_output=True,
        text=True,
        env=environment,
    )
    expected = {name: list(map(str, each.run(25).masks)) for name, each in here.items()}
    assert json.loads(there.stdout) == expected


@pytest.mark.long
@every_selector
@few
@given(some_spaces(6), seeds, st.integers(1, 3), probabilities)
def test_what_is_wanted_is_new_and_what_is_certain_comes_whatever_is_picked(
    name: str, space: SearchSpace, seed: int, n_workers: int, kill: float
) -> None:
    space = suited(name, space)
    ends = []
    for pick in (0, -1):
        simulation = Simulation(
            lambda: selector_of(name, space, seed),
            loss_on(space, seed),
            n_workers,
            seed,
            kill,
            pick=pick,
        ).run(None if name in PLANNED else 8)
        ends.append(simulation)
        for history, wants in simulation.answers:
            assert not {*wants.masks, *wants.certain} & set(history.taken)
            assert len(set(wants.masks)) == len(wants.masks)
            assert not (wants.done and wants.masks)
            assert set(wants.certain) <= set(simulation.masks)
    if name in PLANNED and name != "gp":
        assert ends[0].at_budget == ends[1].at_budget


@every_selector
def test_the_mask_of_a_killed_worker_comes_again(name: str) -> None:
    killed = Simulation(
        lambda: selector_of(name, SearchSpace(6, 3), seed=3),
        pairwise_loss(6, 3),
        n_workers=3,
        kill=0.4,
    ).run(None if name in PLANNED else 60)
    assert len(killed.masks) > len({str(mask) for mask in killed.masks})
    scored = [trial.mask for trial in killed.history]
    assert len(scored) == len(set(scored))
    assert name != "exhaustive" or len(killed.at_budget) == 20


@pytest.mark.parametrize("name", sorted(PLANNED - {"gp"}))
@few
@given(some_spaces(6), seeds, st.integers(2, 6), probabilities, st.data())
def test_any_number_of_mortal_workers_ends_with_the_masks_of_one(
    name: str,
    space: SearchSpace,
    seed: int,
    n_workers: int,
    kill: float,
    data: st.DataObject,
) -> None:
    space = suited(name, space)
    parameters = {"lazy": data.draw(st.booleans())} if name == "greedy" else {}
    loss = loss_on(space, seed)

    def make() -> Selector:
        return selector_of(name, space, seed, **parameters)

    alone = Simulation(make, loss).run()
    together = Simulation(make, loss, n_workers, seed, kill).run()
    assert together.at_budget == alone.at_budget
    assert together.best == alone.best
    assert len(alone.masks) == len(set(alone.masks))


@selectors_that_end
@few
@given(some_spaces(6), seeds, st.integers(1, 4), probabilities, st.data())
def test_workers_end_with_a_valid_mask_at_the_budget_if_there_is_one(
    name: str,
    space: SearchSpace,
    seed: int,
    n_workers: int,
    kill: float,
    data: st.DataObject,
) -> None:
    space = suited(name, space)
    masks = masks_within(space)
    invalid = set(data.draw(st.lists(st.sampled_from(masks), unique=True)))
    simulation = Simulation(
        lambda: selector_of(name, space, seed),
        loss_on(space, seed),
        n_workers,
        seed,
        kill,
        invalid,
    ).run()
    assert bool(simulation.at_budget) == bool({*filter(space.is_at_budget, masks)} - invalid)


@every_selector
def test_enqueued_masks_count_before_anybody_scores_them(name: str) -> None:
    larger, smaller = LayerMask.parse("111100"), LayerMask.parse("010000")
    simulation = Simulation(
        lambda: selector_of(name, SearchSpace(6, 3), seed=0),
        pairwise_loss(6, 0),
        enqueued=[larger, smaller],
    ).run(30)
    assert simulation.masks[:2] == [larger, smaller]
    assert not {larger, smaller} & set(simulation.masks[2:])


@every_selector
@few
@given(some_spaces(6), seeds)
def test_no_mask_at_the_budget_comes_before_the_least_number_of_trials(
    name: str, space: SearchSpace, seed: int
) -> None:
    space = suited(name, space)
    least = selector_of(name, space, seed).least_trials()

    def at_budget(loss: Loss) -> list[bool]:
        simulation = Simulation(
            lambda: selector_of(name, space, seed),
            loss,
            enqueued=[LayerMask.empty(space.n_layers)],
        )
        return [*map(space.is_at_budget, simulation.run(least).masks)]

    if space.n_levels == 1 or name != "greedy":  # lazy greedy may need more or fewer steps
        assert not any(at_budget(loss_on(space, seed))[: least - 1])
    if space.n_levels == 1:
        independent = at_budget(additive_loss(space.n_layers, seed))
        assert not any(independent[:-1])
        assert independent[-1]


@every_selector
@few
@given(seeds, st.integers(1, 4), probabilities)
def test_done_waits_for_masks_at_the_budget_and_waiting_for_something_that_runs(
    name: str, seed: int, n_workers: int, kill: float
) -> None:
    """So that a study neither ends before its last mask, nor waits for ever."""
    simulation = Simulation(
        lambda: selector_of(name, SearchSpace(4, 2), seed),
        pairwise_loss(4, seed),
        n_workers,
        seed,
        kill,
    ).run()
    for history, wants in simulation.answers:
        if wants.done:
            at_budget = [t for t in history if not t.finished and t.mask.n_converted == 2]
            assert not at_budget
        if not wants.masks and not wants.done:
            without = [trial for trial in history if trial.finished]
            assert len(without) < len(history)
            alone = selector_of(name, SearchSpace(4, 2), seed).wants(
                History(without, history.number)
            )
            assert alone.masks or alone.done


def test_the_docstrings_example_runs_as_shown() -> None:
    finder, runner = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner()
    (example,) = finder.find(Selector, globs={})
    assert example.examples
    assert runner.run(example).failed == 0


def test_two_numbers_of_trials_draw_from_two_streams() -> None:
    selector = selector_of("random", SearchSpace(30, 5), seed=0)
    masks = [selector.wants(History((), number)).masks[0] for number in range(50)]
    assert len(set(masks)) == 50
    counts = np.sum([mask.levels for mask in masks], axis=0)
    assert counts.min() > 0


@pytest.mark.parametrize("name", ONE_LEVEL)
def test_a_selector_of_runs_of_layers_refuses_several_levels(name: str) -> None:
    several = SearchSpace(6, 12, savings=(4, 6), choices=(8, 4, 2))
    with pytest.raises(UserError, match=r"several kv_heads; .* 'sensitivity', 'greedy' or 'gp'"):
        selector_of(name, several)
