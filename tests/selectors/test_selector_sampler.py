"""Selectors as samplers of an Optuna study that is somebody's own."""

from collections.abc import Callable

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState
from optuna_trials import suggest
from selector_workers import Simulation, pairwise_loss

from mqasearch.mask import LayerMask
from mqasearch.search_space import SearchSpace
from mqasearch.selectors import PLANNED, SELECTORS, SelectorSampler, mask_params, param_name
from mqasearch.selectors import selector_of as of

N_LAYERS, N_CONVERTED = 7, 3
SPACE = SearchSpace(N_LAYERS, N_CONVERTED)
every_selector = pytest.mark.parametrize("name", SELECTORS)
loss = pairwise_loss(N_LAYERS, 5)


def sampler_of(name: str, seed: int = 5) -> SelectorSampler:
    return SelectorSampler(of(name, SPACE, seed))


def objective(sign: float = 1.0) -> Callable[[optuna.Trial], float]:
    def value(trial: optuna.Trial) -> float:
        mask = suggest(trial, N_LAYERS)
        if mask.n_converted != N_CONVERTED:
            trial.report(sign * loss(mask), step=mask.n_converted)
            raise optuna.TrialPruned
        return sign * loss(mask)

    return value


def masks_of(study: optuna.Study) -> list[LayerMask]:
    return [
        LayerMask(tuple(trial.params[param_name(layer)] for layer in range(N_LAYERS)))
        for trial in study.trials
    ]


@every_selector
@pytest.mark.parametrize(("direction", "sign"), [("minimize", 1.0), ("maximize", -1.0)])
def test_a_study_gets_the_masks_of_its_selector_and_ends_with_its_plan(
    name: str, direction: str, sign: float
) -> None:
    sampler = sampler_of(name)
    study = optuna.create_study(sampler=sampler, direction=direction)
    n_trials = None if name in PLANNED else 25
    study.optimize(objective(sign), n_trials=n_trials, callbacks=[sampler.stop_when_done])
    alone = Simulation(lambda: of(name, SPACE, 5), loss).run(n_trials)
    assert masks_of(study) == alone.masks
    assert sign * study.best_value == loss(alone.best)


@every_selector
def test_masks_are_new_among_those_whose_parameters_are_not_written_yet(name: str) -> None:
    study = optuna.create_study(sampler=sampler_of(name))
    trials = [
        study.ask({param_name(0): optuna.distributions.CategoricalDistribution((False, True))})
        for _ in range(6)
    ]
    assert all(len(trial.params) == 1 for trial in trials)
    assert len({suggest(trial, N_LAYERS) for trial in trials}) == 6


@every_selector
def test_threads_of_one_study_never_score_a_mask_twice(name: str) -> None:
    study = optuna.create_study(sampler=sampler_of(name))
    study.optimize(objective(), n_trials=30, n_jobs=3)
    masks = masks_of(study)
    assert len(set(masks)) == len(masks)


@every_selector
@settings(max_examples=8, deadline=None, derandomize=True)
@given(st.dictionaries(st.integers(0, N_LAYERS - 1), st.booleans(), max_size=5))
def test_layers_fixed_by_the_user_stay_and_the_rest_keeps_to_the_budget(
    name: str, fixed: dict[int, bool]
) -> None:
    study = optuna.create_study(sampler=sampler_of(name))
    study.enqueue_trial({param_name(layer): flag for layer, flag in fixed.items()})
    mask = suggest(study.ask(), N_LAYERS)
    assert all(mask.levels[layer] == flag for layer, flag in fixed.items())
    assert mask.n_converted <= max(N_CONVERTED, sum(fixed.values()))


@every_selector
def test_what_is_enqueued_runs_as_it_is_and_is_not_proposed_again(name: str) -> None:
    larger, smaller = LayerMask.parse("1111000"), LayerMask.parse("0100000")
    study = optuna.create_study(sampler=sampler_of(name))
    for mask in (larger, smaller):
        study.enqueue_trial(mask_params(mask, SPACE))
    study.optimize(objective(), n_trials=20)
    assert masks_of(study)[:2] == [larger, smaller]
    assert not {larger, smaller} & set(masks_of(study)[2:])


@every_selector
def test_the_mask_of_a_failed_trial_is_as_good_as_unseen(name: str) -> None:
    study = optuna.create_study(sampler=sampler_of(name))
    lost = study.ask()
    mask = suggest(lost, N_LAYERS)
    study.tell(lost, state=TrialState.FAIL)
    sampler = study.sampler
    assert isinstance(sampler, SelectorSampler)
    assert mask not in sampler.history(study).taken
