"""The sampler of workers that share a study: a mask is written as soon as it is proposed."""

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna_trials import fail, suggest

from mqasearch.search.sampler import SharedSampler
from mqasearch.selectors import MASK_KEY, SELECTORS, mask_params, param_name, selector_of

every_selector = pytest.mark.parametrize("name", SELECTORS)


def sampler_of(name: str, seed: int = 0) -> SharedSampler:
    return SharedSampler(selector_of(name, 6, 3, seed))


@every_selector
@settings(max_examples=8, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(1, 4))
def test_another_worker_sees_a_mask_as_soon_as_its_first_parameter_is_asked_for(
    name: str, seed: int, n_trials: int
) -> None:
    study = optuna.create_study()
    for _ in range(n_trials):
        study.sampler = sampler_of(name, seed)
        study.ask().suggest_categorical(param_name(0), (False, True))
    history = sampler_of(name, seed).history(study)
    assert [trial.state for trial in history] == ["running"] * n_trials
    assert [str(trial.mask) for trial in history] == [
        trial.user_attrs[MASK_KEY] for trial in study.trials
    ]


@every_selector
def test_a_trial_given_back_halfway_keeps_its_mask(name: str) -> None:
    study = optuna.create_study(sampler=sampler_of(name))
    trial = study.ask()
    trial.suggest_categorical(param_name(0), (False, True))
    fail(study, trial)
    lost = study.trials[0]
    study.enqueue_trial(lost.params, user_attrs=lost.user_attrs)
    assert str(suggest(study.ask(), 6)) == lost.user_attrs[MASK_KEY]


@every_selector
def test_an_enqueued_mask_is_written_when_its_trial_starts(name: str) -> None:
    study = optuna.create_study(sampler=sampler_of(name))
    study.enqueue_trial(
        mask_params(sampler_of(name).selector.spare(sampler_of(name).history(study)))
    )
    study.ask()
    (trial,) = study.trials
    assert trial.user_attrs[MASK_KEY].count("1") == sum(trial.system_attrs["fixed_params"].values())


@every_selector
def test_two_workers_that_ask_at_once_get_two_masks(name: str) -> None:
    study = optuna.create_study(sampler=sampler_of(name))
    first, second = study.ask(), study.ask()
    slow = sampler_of(name)
    chosen = slow.chosen

    def chosen_while_the_other_publishes(history):
        mask = chosen(history)
        study.sampler = sampler_of(name)
        # The race is set up by force: the earlier trial proposes just what this one is about to.
        study.sampler.chosen = lambda _: mask
        suggest(first, 6)
        slow.chosen = chosen
        return mask

    slow.chosen = chosen_while_the_other_publishes
    study.sampler = slow
    assert suggest(second, 6) != suggest(first, 6)


def test_a_worker_takes_the_wanted_mask_that_it_prefers() -> None:
    study = optuna.create_study(sampler=sampler_of("sensitivity"))
    study.sampler.prefer = lambda masks: masks[-1]
    assert suggest(study.ask(), 6).layers == (5,)
