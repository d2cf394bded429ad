"""What a study remembers about masks: the only memory that a selector has.

Two user attributes of a trial carry what Optuna's own fields do not:

``mqasearch:mask``     the mask, as text, written as soon as it is proposed. Parameters arrive one
                       by one, each in a transaction; without the attribute another worker would
                       see a running trial without a mask.
``mqasearch:invalid``  on a failed trial: the mask itself is at fault (its score is not a number).
                       A failed trial without it says nothing about its mask (the worker died), so
                       the mask is as good as unseen.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from mqasearch.mask import LayerMask
from mqasearch.samplers.space import param_name

MASK_KEY = "mqasearch:mask"
INVALID_KEY = "mqasearch:invalid"

MaskState = Literal["running", "complete", "pruned", "invalid"]


@dataclass(frozen=True, slots=True)
class MaskTrial:
    """One trial as a selector sees it.

    Attributes:
        number: of the trial; ascending in a history.
        mask: which layers it converts.
        state: ``running`` (also: enqueued and waiting), ``complete`` (at the budget), ``pruned``
            (a probe below it) or ``invalid`` (cannot be scored, must not be tried again).
        loss: lower is better whatever the study's direction; ``inf`` when invalid, ``nan`` while
            running.
    """

    number: int
    mask: LayerMask
    state: MaskState
    loss: float

    @property
    def finished(self) -> bool:
        """Whether the loss is final."""
        return self.state != "running"


def read_history(study: Study, n_layers: int, *, without: int | None = None) -> list[MaskTrial]:
    """Every trial of the study whose mask is known and counts, by number.

    Left out: failed trials that are not marked invalid, trials of another search space or number
    of layers, and the trial numbered ``without`` (the one that asks). Costs one read of the
    study's trials, without copies, and a few µs a trial.
    """
    sign = -1.0 if study.direction == StudyDirection.MAXIMIZE else 1.0
    return [
        MaskTrial(trial.number, mask, *found)
        for trial in study.get_trials(deepcopy=False)
        if trial.number != without
        and (found := _state_and_loss(trial, sign)) is not None
        and (mask := mask_of(trial, n_layers)) is not None
    ]


def mask_of(trial: FrozenTrial, n_layers: int) -> LayerMask | None:
    """The trial's mask: from its attribute, else its parameters, else what it was enqueued with.

    None where none of these says all of ``n_layers`` flags.
    """
    text = trial.user_attrs.get(MASK_KEY)
    if isinstance(text, str):
        return _parse(text) if len(text) == n_layers else None
    params = trial.params or trial.system_attrs.get("fixed_params", {})
    flags = [params.get(param_name(layer)) for layer in range(n_layers)]
    return None if None in flags else LayerMask(tuple(map(bool, flags)))


@lru_cache(maxsize=1 << 16)
def _parse(text: str) -> LayerMask:
    return LayerMask.parse(text)


def _state_and_loss(trial: FrozenTrial, sign: float) -> tuple[MaskState, float] | None:
    """None for a trial that does not count."""
    if trial.state in (TrialState.RUNNING, TrialState.WAITING):
        return "running", math.nan
    if trial.state == TrialState.FAIL:
        return ("invalid", math.inf) if trial.user_attrs.get(INVALID_KEY) else None
    state: MaskState = "complete" if trial.state == TrialState.COMPLETE else "pruned"
    # Optuna itself copies a pruned trial's last report to its value.
    if trial.value is None:
        return None
    return state, sign * trial.value
