"""What an Optuna study remembers about masks.

Two user attributes of a trial carry what Optuna's own fields do not:

``mqasearch:mask``     the mask, as text. Parameters arrive one by one; without the attribute a
                       running trial has no mask for a while.
``mqasearch:invalid``  on a failed trial: the mask itself is at fault (its score is not a number).
                       A failed trial without it says nothing about its mask (the worker died), so
                       the mask is as good as unseen.
"""

import math

from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from mqasearch.mask import LayerMask, is_mask
from mqasearch.search_space import SearchSpace
from mqasearch.selectors.history import History, MaskState, MaskTrial
from mqasearch.selectors.parameters import levels_of

MASK_KEY = "mqasearch:mask"
INVALID_KEY = "mqasearch:invalid"


def read_history(study: Study, space: SearchSpace, *, without: int | None = None) -> History:
    """Every trial of the study whose mask is known and counts, by number.

    Left out: failed trials that are not marked invalid, trials of another search space, and the
    trial numbered ``without`` (the one that asks).

    Args:
        study: the study to read.
        space: the search space of its masks.
        without: the number of an unfinished trial, which is the next one to get a mask.
    """
    sign = -1.0 if study.direction == StudyDirection.MAXIMIZE else 1.0
    trials = study.get_trials(deepcopy=False)
    found = (_mask_trial(trial, space, sign) for trial in trials if trial.number != without)
    number = len(trials) if without is None else without
    return History((trial for trial in found if trial is not None), number)


def _mask_trial(trial: FrozenTrial, space: SearchSpace, sign: float) -> MaskTrial | None:
    """The trial as a selector sees it; None if it does not count."""
    found = _state_and_loss(trial, sign)
    mask = mask_of(trial, space)
    if found is None or mask is None:
        return None
    return MaskTrial(trial.number, mask, *found)


def mask_of(trial: FrozenTrial, space: SearchSpace) -> LayerMask | None:
    """The trial's mask: from its attribute, else its parameters, else what it was enqueued with.

    None if none of these gives a level of every layer.
    """
    text = trial.user_attrs.get(MASK_KEY)
    if isinstance(text, str):
        mask = LayerMask.parse(text) if is_mask(text) else None
        return mask if mask is not None and space.holds(mask) else None
    levels = levels_of(trial.params or trial.system_attrs.get("fixed_params", {}), space)
    return LayerMask(tuple(levels.values())) if len(levels) == space.n_layers else None


def _state_and_loss(trial: FrozenTrial, sign: float) -> tuple[MaskState, float] | None:
    if trial.state in (TrialState.RUNNING, TrialState.WAITING):
        return "running", math.nan
    if trial.state == TrialState.FAIL:
        return ("invalid", math.inf) if trial.user_attrs.get(INVALID_KEY) else None
    if trial.state == TrialState.COMPLETE:
        return None if trial.value is None else ("complete", sign * trial.value)
    # Optuna copies a pruned trial's last report to its value, but not for trials added as a whole.
    reports = trial.intermediate_values
    return ("pruned", sign * reports[max(reports)]) if reports else None
