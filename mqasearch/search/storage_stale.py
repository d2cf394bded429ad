"""Trials whose worker is gone: what takes their place."""

from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from mqasearch.mask import LayerMask
from mqasearch.selectors import INVALID_KEY, MASK_KEY, mask_params

HEARTBEAT_SECONDS = 30
GRACE_SECONDS = 150

DEATHS = 4
"""Workers that may die of one mask before it is called invalid: one that makes its process run out
of memory would otherwise take all workers with it, one after the other."""

GIVEN_BACK_KEY = "mqasearch:given_back"
"""On a trial that its worker gave back because it was told to stop. Nobody died of its mask."""

_FIXED, _FIRST, _HISTORY = "fixed_params", "failed_trial", "retry_history"
"""Optuna's own keys, so that its functions understand what is written here."""

_DEATHS = "mqasearch:deaths"


def successor_of(trial: FrozenTrial) -> FrozenTrial | None:
    """What takes the place of a trial that fails, for the next worker that asks.

    None for a trial whose mask is at fault, and for one that had no mask yet: the selector proposes
    again whatever is missing.
    """
    attributes = dict(trial.system_attrs)
    if MASK_KEY in trial.user_attrs:
        attributes[_FIXED] = mask_params(LayerMask.parse(trial.user_attrs[MASK_KEY]))
    if _FIXED not in attributes or INVALID_KEY in trial.user_attrs:
        return None
    history = [*attributes.get(_HISTORY, []), trial.number]
    user_attrs = dict(trial.user_attrs)
    died = not user_attrs.pop(GIVEN_BACK_KEY, False)
    deaths = attributes.get(_DEATHS, 0) + died
    attributes |= {_FIRST: history[0], _HISTORY: history, _DEATHS: deaths}
    return _successor(user_attrs, attributes, deaths)


def _successor(user_attrs: dict[str, Any], attributes: dict[str, Any], deaths: int) -> FrozenTrial:
    """A waiting trial, or a failed one that keeps everybody from the mask."""
    if deaths < DEATHS:
        return optuna.create_trial(
            state=TrialState.WAITING, user_attrs=user_attrs, system_attrs=attributes
        )
    user_attrs[INVALID_KEY] = f"{deaths} workers died or ran out of memory while they scored it"
    return optuna.create_trial(
        state=TrialState.FAIL, user_attrs=user_attrs, system_attrs=attributes
    )
