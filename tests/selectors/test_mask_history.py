"""What a study remembers, in Optuna's memory and in its database."""

import math
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage
from optuna.trial import TrialState
from optuna_trials import fail, finish, suggest

from mqasearch.mask import LayerMask
from mqasearch.search_space import SearchSpace
from mqasearch.selectors import (
    INVALID_KEY,
    MASK_KEY,
    SelectorSampler,
    distributions,
    mask_params,
    param_name,
    read_history,
    selector_of,
)

N_LAYERS = 5
SPACE = SearchSpace(N_LAYERS, 2)


def at_random(seed: int = 0) -> SelectorSampler:
    return SelectorSampler(selector_of("random", SPACE, seed))


@pytest.fixture(params=["memory", "sqlite"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BaseStorage]:
    if request.param == "memory":
        yield InMemoryStorage()
        return
    rdb = RDBStorage(f"sqlite:///{tmp_path}/optuna.db")
    yield rdb
    rdb.remove_session()
    rdb.engine.dispose()


def test_each_state_is_told_apart(storage: BaseStorage) -> None:
    study = optuna.create_study(
        storage=storage,
        direction="maximize",
        sampler=at_random(),
    )
    trials = [study.ask() for _ in range(6)]
    masks = [suggest(trial, N_LAYERS) for trial in trials[:5]]
    finish(study, trials[0], True, 0.75)
    finish(study, trials[1], False, 0.5)
    fail(study, trials[2], invalid=True)
    fail(study, trials[3])
    fail(study, trials[5])
    history = read_history(study, SPACE)
    assert [(t.number, t.mask, t.state) for t in history] == [
        (0, masks[0], "complete"),
        (1, masks[1], "pruned"),
        (2, masks[2], "invalid"),
        (4, masks[4], "running"),
    ]
    assert [t.loss for t in history[:3]] == [-0.75, -0.5, math.inf]
    assert math.isnan(history[3].loss)
    assert [t.finished for t in history] == [True, True, True, False]
    assert [t.number for t in read_history(study, SPACE, without=4)] == [0, 1, 2]


def test_masks_are_read_from_parameters_where_the_attribute_is_missing(
    storage: BaseStorage,
) -> None:
    study = optuna.create_study(storage=storage)
    mask = LayerMask.parse("01010")
    study.add_trial(
        optuna.create_trial(
            params=mask_params(mask, SPACE), distributions=distributions(SPACE), value=1.0
        )
    )
    study.add_trial(
        optuna.create_trial(
            state=TrialState.PRUNED,
            params=mask_params(mask, SPACE),
            distributions=distributions(SPACE),
            intermediate_values={1: 3.0, 2: 4.0},
        )
    )
    assert [(t.mask, t.loss) for t in read_history(study, SPACE)] == [
        (mask, 1.0),
        (mask, 4.0),
    ]


def test_trials_that_say_nothing_about_masks_are_left_out(storage: BaseStorage) -> None:
    study = optuna.create_study(storage=storage)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    study.enqueue_trial({param_name(0): True})
    study.enqueue_trial({})
    other = LayerMask.parse("0101010101")
    study.enqueue_trial(mask_params(other, SPACE), user_attrs={MASK_KEY: str(other)})
    assert read_history(study, SPACE) == []


def test_an_invalid_mark_on_a_trial_that_was_scored_changes_nothing() -> None:
    study = optuna.create_study(sampler=at_random())
    trial = study.ask()
    suggest(trial, N_LAYERS)
    trial.set_user_attr(INVALID_KEY, "by mistake")
    study.tell(trial, 1.0)
    assert [t.state for t in read_history(study, SPACE)] == ["complete"]
