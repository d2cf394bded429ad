"""What every selector promises, whatever its idea: one suite for the seam ``MaskSampler``."""

import math
from collections.abc import Sequence

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samplers.sampler_workers import (
    Loss,
    Simulation,
    additive_loss,
    all_masks,
    fail,
    finish,
    new_study,
    pairwise_loss,
    suggest,
)

from mqasearch.mask import LayerMask
from mqasearch.samplers import (
    MASK_KEY,
    PLANNED,
    SELECTORS,
    MaskSampler,
    MaskTrial,
    Outlook,
    mask_params,
    param_name,
    sampler_of,
)

every_selector = pytest.mark.parametrize("name", SELECTORS)
selectors_that_end = pytest.mark.parametrize("name", sorted(PLANNED))
few = settings(max_examples=8, deadline=None, derandomize=True)
seeds = st.integers(0, 10**6)
probabilities = st.floats(0, 0.5)


@st.composite
def budgets(draw: st.DrawFn, largest: int = 6) -> tuple[int, int]:
    """(n_layers, n_converted)."""
    n_layers = draw(st.integers(1, largest))
    return n_layers, draw(st.integers(1, n_layers))


@every_selector
@few
@given(budgets(5), seeds, st.integers(1, 4))
def test_every_mask_within_the_budget_comes_once_before_any_comes_twice(
    name: str, budget: tuple[int, int], seed: int, n_workers: int
) -> None:
    n_layers, n_converted = budget
    n_masks = sum(math.comb(n_layers, size) for size in range(n_converted + 1))
    simulation = Simulation(
        lambda: sampler_of(name, n_layers, n_converted, seed),
        pairwise_loss(n_layers, seed),
        n_workers,
        seed,
    ).run(n_masks + 3)
    assert len(set(simulation.masks[:n_masks])) == n_masks
    assert all(mask.n_converted <= n_converted for mask in simulation.masks)


@every_selector
@few
@given(budgets(5), seeds, st.integers(1, 4), st.data())
def test_invalid_masks_never_come_again(
    name: str, budget: tuple[int, int], seed: int, n_workers: int, data: st.DataObject
) -> None:
    n_layers, n_converted = budget
    masks = [mask for size in range(n_converted + 1) for mask in all_masks(n_layers, size)]
    invalid = set(data.draw(st.lists(st.sampled_from(masks), unique=True)))
    simulation = Simulation(
        lambda: sampler_of(name, n_layers, n_converted, seed),
        pairwise_loss(n_layers, seed),
        n_workers,
        seed,
        invalid=invalid,
    ).run(len(masks))
    assert sorted(map(str, simulation.masks)) == sorted(map(str, masks))


@every_selector
@few
@given(budgets(), seeds)
def test_same_seed_and_history_give_the_same_masks(
    name: str, budget: tuple[int, int], seed: int
) -> None:
    loss = pairwise_loss(budget[0], seed)
    kept = sampler_of(name, *budget, seed)
    runs = (lambda: kept, lambda: sampler_of(name, *budget, seed))
    first, second = (Simulation(make, loss).run(12).masks for make in runs)
    assert first == second


@every_selector
@few
@given(budgets(), seeds, st.integers(1, 4))
def test_another_worker_sees_a_mask_as_soon_as_its_first_parameter_is_asked_for(
    name: str, budget: tuple[int, int], seed: int, n_trials: int
) -> None:
    study = new_study()
    for _ in range(n_trials):
        study.sampler = sampler_of(name, *budget, seed)
        study.ask().suggest_categorical(param_name(0), (False, True))
    history = sampler_of(name, *budget, seed).history(study)
    assert [trial.state for trial in history] == ["running"] * n_trials
    assert [str(trial.mask) for trial in history] == [
        trial.user_attrs[MASK_KEY] for trial in study.trials
    ]


@every_selector
@few
@given(budgets(), seeds, st.integers(1, 3))
def test_what_is_certain_is_new_and_comes_whatever_the_preference(
    name: str, budget: tuple[int, int], seed: int, n_workers: int
) -> None:
    announced: set[LayerMask] = set()

    def make(pick: int) -> MaskSampler:
        sampler = sampler_of(name, *budget, seed)
        propose = sampler.propose

        def noting(history: Sequence[MaskTrial], rng: np.random.Generator) -> LayerMask:
            certain = sampler.certain(history)
            assert not set(certain) & {trial.mask for trial in history}
            announced.update(certain)
            return propose(history, rng)

        sampler.propose = noting  # type: ignore[method-assign]
        sampler.prefer = lambda masks: masks[pick]
        return sampler

    n_trials = None if name in PLANNED else 8
    ends = [
        Simulation(lambda p=pick: make(p), pairwise_loss(budget[0], seed), n_workers, seed).run(
            n_trials
        )
        for pick in (0, -1)
    ]
    assert announced <= set(ends[0].masks) | set(ends[1].masks)
    if name in PLANNED and name != "gp":
        assert ends[0].at_budget == ends[1].at_budget


@every_selector
def test_the_mask_of_a_killed_worker_comes_again(name: str) -> None:
    sampler = sampler_of(name, 6, 3, seed=3)
    everything = 20 if name == "exhaustive" else None
    killed = Simulation(
        lambda: sampler_of(name, 6, 3, seed=3), pairwise_loss(6, 3), n_workers=3, kill=0.4
    ).run(None if name in PLANNED else 60)
    assert len(killed.masks) > len({str(mask) for mask in killed.masks})
    scored = [trial.mask for trial in sampler.history(killed.study)]
    assert len(scored) == len(set(scored))
    assert everything is None or len(killed.at_budget) == everything


@pytest.mark.parametrize("name", sorted(PLANNED - {"gp"}))
@few
@given(budgets(), seeds, st.integers(2, 6), probabilities, st.data())
def test_any_number_of_mortal_workers_ends_with_the_masks_of_one(
    name: str,
    budget: tuple[int, int],
    seed: int,
    n_workers: int,
    kill: float,
    data: st.DataObject,
) -> None:
    parameters = {"lazy": data.draw(st.booleans())} if name == "greedy" else {}
    loss = pairwise_loss(budget[0], seed)

    def make() -> MaskSampler:
        return sampler_of(name, *budget, seed, **parameters)

    alone = Simulation(make, loss).run()
    together = Simulation(make, loss, n_workers, seed, kill).run()
    assert together.at_budget == alone.at_budget
    assert together.best == alone.best
    assert len(alone.masks) == len(set(alone.masks))


@selectors_that_end
@few
@given(budgets(), seeds, st.integers(1, 4), probabilities, st.data())
def test_workers_end_with_a_valid_mask_at_the_budget_if_there_is_one(
    name: str,
    budget: tuple[int, int],
    seed: int,
    n_workers: int,
    kill: float,
    data: st.DataObject,
) -> None:
    n_layers, n_converted = budget
    masks = [mask for size in range(n_converted + 1) for mask in all_masks(n_layers, size)]
    invalid = set(data.draw(st.lists(st.sampled_from(masks), unique=True)))
    simulation = Simulation(
        lambda: sampler_of(name, n_layers, n_converted, seed),
        pairwise_loss(n_layers, seed),
        n_workers,
        seed,
        kill,
        invalid,
    ).run()
    assert bool(simulation.at_budget) == bool(set(all_masks(n_layers, n_converted)) - invalid)


@every_selector
def test_the_direction_of_the_study_does_not_matter(name: str) -> None:
    loss = pairwise_loss(7, 5)
    runs = [
        Simulation(
            lambda: sampler_of(name, 7, 3, seed=5),
            lambda mask, sign=sign: sign * loss(mask),
            study=new_study(direction),
        ).run(25)
        for direction, sign in (("minimize", 1), ("maximize", -1))
    ]
    assert runs[0].masks == runs[1].masks


@every_selector
def test_enqueued_masks_run_as_they_are_and_count(name: str) -> None:
    larger, smaller = LayerMask.parse("111100"), LayerMask.parse("010000")
    simulation = Simulation(lambda: sampler_of(name, 6, 3, seed=0), pairwise_loss(6, 0))
    for mask in (larger, smaller):
        simulation.study.enqueue_trial(mask_params(mask))
    waiting = sampler_of(name, 6, 3, seed=0).history(simulation.study)
    assert [(trial.mask, trial.state) for trial in waiting] == [
        (larger, "running"),
        (smaller, "running"),
    ]
    simulation.run(30)
    assert simulation.masks[:2] == [larger, smaller]
    assert not {larger, smaller} & set(simulation.masks[2:])
    assert all(MASK_KEY in trial.user_attrs for trial in simulation.study.trials)


@every_selector
@few
@given(budgets(), seeds)
def test_no_mask_at_the_budget_comes_before_the_least_number_of_trials(
    name: str, budget: tuple[int, int], seed: int
) -> None:
    n_layers, n_converted = budget
    least = sampler_of(name, n_layers, n_converted, seed).least_trials()

    def sizes(loss: Loss) -> list[int]:
        simulation = Simulation(lambda: sampler_of(name, n_layers, n_converted, seed), loss)
        simulation.study.enqueue_trial(mask_params(LayerMask.empty(n_layers)))
        return [mask.n_converted for mask in simulation.run(least).masks]

    assert n_converted not in sizes(pairwise_loss(n_layers, seed))[: least - 1]
    independent = sizes(additive_loss(n_layers, seed))
    assert n_converted not in independent[:-1]
    assert independent[-1] == n_converted


@every_selector
@few
@given(st.dictionaries(st.integers(0, 5), st.booleans(), max_size=5), seeds)
def test_layers_fixed_by_the_user_stay_and_the_rest_keeps_to_the_budget(
    name: str, fixed: dict[int, bool], seed: int
) -> None:
    study = new_study()
    study.sampler = sampler_of(name, 6, 3, seed)
    study.enqueue_trial({param_name(layer): flag for layer, flag in fixed.items()})
    trial = study.ask()
    mask = suggest(trial, 6)
    assert all(mask.flags[layer] == flag for layer, flag in fixed.items())
    assert mask.n_converted <= max(3, sum(fixed.values()))
    assert study.trials[0].user_attrs[MASK_KEY] == str(mask)


@every_selector
def test_a_trial_given_back_halfway_keeps_its_mask(name: str) -> None:
    study = new_study()
    study.sampler = sampler_of(name, 6, 3, seed=0)
    trial = study.ask()
    trial.suggest_categorical(param_name(0), (False, True))
    fail(study, trial)
    lost = study.trials[0]
    study.enqueue_trial(lost.params, user_attrs=lost.user_attrs)
    assert str(suggest(study.ask(), 6)) == lost.user_attrs[MASK_KEY]


@every_selector
def test_two_workers_that_ask_at_once_get_two_masks(name: str) -> None:
    study = new_study()
    study.sampler = sampler_of(name, 6, 3, seed=0)
    first, second = study.ask(), study.ask()
    slow = sampler_of(name, 6, 3, seed=0)
    draw = slow.draw

    def draw_while_the_other_publishes(*args):
        mask = draw(*args)
        study.sampler = sampler_of(name, 6, 3, seed=0)
        # The race is set up by force: the earlier trial proposes just what this one is about to.
        study.sampler.draw = lambda *_: mask
        suggest(first, 6)
        slow.draw = draw
        return mask

    slow.draw = draw_while_the_other_publishes
    study.sampler = slow
    assert suggest(second, 6) != suggest(first, 6)


@every_selector
def test_nobody_is_told_that_all_is_done_while_somebody_may_die(name: str) -> None:
    sampler = sampler_of(name, 4, 2, seed=0)
    study = new_study()
    study.sampler = sampler
    loss = pairwise_loss(4, 0)
    running: list[tuple[optuna.Trial, LayerMask]] = []

    def outlook() -> Outlook:
        return sampler.outlook(sampler.history(study))

    while outlook() != Outlook.DONE:
        while outlook() == Outlook.READY:
            trial = study.ask()
            running.append((trial, suggest(trial, 4)))
        assert outlook() == Outlook.WAIT
        fail(study, running.pop()[0])
        assert outlook() == Outlook.READY
        trial = study.ask()
        running.append((trial, suggest(trial, 4)))
        for trial, mask in running:
            assert outlook() != Outlook.DONE or mask.n_converted < 2
            finish(study, trial, mask.n_converted == 2, loss(mask))
        running.clear()


def test_generators_of_workers_that_share_a_seed_are_not_shared() -> None:
    study = new_study()
    study.sampler = sampler_of("random", 30, 5, seed=0)
    masks = [suggest(study.ask(), 30) for _ in range(50)]
    assert len(set(masks)) == 50
    counts = np.sum([mask.flags for mask in masks], axis=0)
    assert counts.min() > 0
