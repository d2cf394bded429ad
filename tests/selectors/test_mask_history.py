"""What a study remembers, in Optuna's memory and in its database."""

import math
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage
from optuna.trial import TrialState
from optuna_trials import fail, finish, suggest

from mqasearch.mask import LayerMask
from mqasearch.selectors import (
    INVALID_KEY,
    MASK_KEY,
    HistoryReader,
    MaskTrial,
    SelectorSampler,
    mask_params,
    optuna_history,
    param_name,
    search_space,
    selector_of,
)

N_LAYERS = 5


def at_random(seed: int = 0) -> SelectorSampler:
    return SelectorSampler(selector_of("random", N_LAYERS, 2, seed))


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
    history = HistoryReader(N_LAYERS).read(study)
    assert [(t.number, t.mask, t.state) for t in history] == [
        (0, masks[0], "complete"),
        (1, masks[1], "pruned"),
        (2, masks[2], "invalid"),
        (4, masks[4], "running"),
    ]
    assert [t.loss for t in history[:3]] == [-0.75, -0.5, math.inf]
    assert math.isnan(history[3].loss)
    assert [t.finished for t in history] == [True, True, True, False]
    assert [t.number for t in HistoryReader(N_LAYERS).read(study, without=4)] == [0, 1, 2]


def test_masks_are_read_from_parameters_where_the_attribute_is_missing(
    storage: BaseStorage,
) -> None:
    study = optuna.create_study(storage=storage)
    mask = LayerMask.parse("01010")
    study.add_trial(
        optuna.create_trial(
            params=mask_params(mask), distributions=search_space(N_LAYERS), value=1.0
        )
    )
    study.add_trial(
        optuna.create_trial(
            state=TrialState.PRUNED,
            params=mask_params(mask),
            distributions=search_space(N_LAYERS),
            intermediate_values={1: 3.0, 2: 4.0},
        )
    )
    assert [(t.mask, t.loss) for t in HistoryReader(N_LAYERS).read(study)] == [
        (mask, 1.0),
        (mask, 4.0),
    ]


def test_trials_that_say_nothing_about_masks_are_left_out(storage: BaseStorage) -> None:
    study = optuna.create_study(storage=storage)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    study.enqueue_trial({param_name(0): True})
    study.enqueue_trial({})
    other = LayerMask.parse("0101010101")
    study.enqueue_trial(mask_params(other), user_attrs={MASK_KEY: str(other)})
    assert HistoryReader(N_LAYERS).read(study) == []


@pytest.mark.long
def test_a_reader_that_has_read_before_reads_what_a_new_one_reads(storage: BaseStorage) -> None:
    rng = np.random.default_rng(0)
    study = optuna.create_study(storage=storage, sampler=at_random())
    kept = HistoryReader(N_LAYERS)
    running: list[tuple[optuna.Trial, LayerMask]] = []
    for _ in range(25):
        if not running or rng.random() < 0.5:
            trial = study.ask()
            running.append((trial, suggest(trial, N_LAYERS)))
        else:
            trial, mask = running.pop(rng.integers(len(running)))
            if rng.random() < 0.5:
                fail(study, trial, invalid=rng.random() < 0.5)
            else:
                finish(study, trial, mask.n_converted == 2, rng.random())
        # Compared as text, since a running trial's nan equals nothing.
        assert str(kept.read(study)) == str(HistoryReader(N_LAYERS).read(study))


def test_one_reader_may_serve_several_studies() -> None:
    reader = HistoryReader(N_LAYERS)
    for seed in range(2):
        study = optuna.create_study(sampler=at_random(seed))
        trial = study.ask()
        mask = suggest(trial, N_LAYERS)
        study.tell(trial, float(seed))
        assert [(t.mask, t.loss) for t in reader.read(study)] == [(mask, seed)]


def test_an_invalid_mark_on_a_trial_that_was_scored_changes_nothing() -> None:
    study = optuna.create_study(sampler=at_random())
    trial = study.ask()
    suggest(trial, N_LAYERS)
    trial.set_user_attr(INVALID_KEY, "by mistake")
    study.tell(trial, 1.0)
    assert [t.state for t in HistoryReader(N_LAYERS).read(study)] == ["complete"]


def test_threads_that_read_at_once_read_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    study = optuna.create_study(sampler=at_random())
    for _ in range(10):
        trial = study.ask()
        suggest(trial, N_LAYERS)
        finish(study, trial, True, 1.0)
    expected = [*HistoryReader(N_LAYERS).read(study)]
    look = optuna_history.mask_of

    def slowly(*arguments: Any) -> Any:
        time.sleep(0.001)  # another thread has its turn
        return look(*arguments)

    monkeypatch.setattr(optuna_history, "mask_of", slowly)
    reader, together = HistoryReader(N_LAYERS), threading.Barrier(4)

    def read() -> list[MaskTrial]:
        together.wait()
        return [*reader.read(study)]

    with ThreadPoolExecutor(4) as pool:
        assert [one.result() for one in [pool.submit(read) for _ in range(4)]] == [expected] * 4
