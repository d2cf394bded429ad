"""Trials whose worker is gone."""

from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from mqasearch.mask import LayerMask
from mqasearch.samplers import INVALID_KEY, MASK_KEY, mask_params

HEARTBEAT_SECONDS = 30
GRACE_SECONDS = 150

DEATHS = 4
"""Workers that may die of one mask before it is called invalid: one that makes its process run out
of memory would otherwise take all workers with it, one after the other."""

_FIXED, _FIRST, _HISTORY = "fixed_params", "failed_trial", "retry_history"
"""Optuna's own keys, so that its functions understand what is written here."""


def requeue(study: optuna.Study, trial: FrozenTrial) -> None:
    """Queue the mask of a failed trial again; the next worker that asks takes it.

    Optuna calls this for each trial that it fails as stale; a worker that is told to stop calls it
    for the trial in hand. A trial that had no mask yet is not replaced: the selector proposes
    again whatever is missing.
    """
    attributes = dict(trial.system_attrs)
    if MASK_KEY in trial.user_attrs:
        attributes[_FIXED] = mask_params(LayerMask.parse(trial.user_attrs[MASK_KEY]))
    if _FIXED not in attributes or INVALID_KEY in trial.user_attrs:
        return
    history = [*attributes.get(_HISTORY, []), trial.number]
    attributes |= {_FIRST: history[0], _HISTORY: history}
    study.add_trial(_successor(trial, attributes, n_deaths=len(history)))


def _successor(trial: FrozenTrial, attributes: dict[str, Any], n_deaths: int) -> FrozenTrial:
    """A waiting trial, or a failed one that keeps everybody from the mask."""
    user_attrs = dict(trial.user_attrs)
    if n_deaths < DEATHS:
        return optuna.create_trial(
            state=TrialState.WAITING, user_attrs=user_attrs, system_attrs=attributes
        )
    user_attrs[INVALID_KEY] = f"{n_deaths} workers died while they scored it"
    return optuna.create_trial(
        state=TrialState.FAIL, user_attrs=user_attrs, system_attrs=attributes
    )
