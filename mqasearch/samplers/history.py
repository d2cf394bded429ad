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


class HistoryReader:
    """Reads a study's history again and again at a cost that hardly grows with it.

    Finished trials cannot change, and Optuna's storages hand out the same object for one at every
    read; what was made of it is kept beside it. A cache and no memory: any other instance reads
    the same history.

    Args:
        n_layers: of the masks; trials of another length are no part of the history.
    """

    def __init__(self, n_layers: int) -> None:
        self.n_layers = n_layers
        self._finished: dict[int, tuple[FrozenTrial, MaskTrial | None]] = {}

    def read(self, study: Study, *, without: int | None = None) -> list[MaskTrial]:
        """Every trial of the study whose mask is known and counts, by number.

        Left out: failed trials that are not marked invalid, trials of another search space or
        number of layers, and the trial numbered ``without`` (the one that asks).
        """
        sign = -1.0 if study.direction == StudyDirection.MAXIMIZE else 1.0
        trials = [
            self._trial(trial, sign)
            for trial in study.get_trials(deepcopy=False)
            if trial.number != without
        ]
        return [trial for trial in trials if trial is not None]

    def _trial(self, frozen: FrozenTrial, sign: float) -> MaskTrial | None:
        kept = self._finished.get(frozen._trial_id)
        if kept is not None and kept[0] is frozen:
            return kept[1]
        trial = _mask_trial(frozen, self.n_layers, sign)
        if frozen.state.is_finished():
            self._finished[frozen._trial_id] = (frozen, trial)
        return trial


def _mask_trial(trial: FrozenTrial, n_layers: int, sign: float) -> MaskTrial | None:
    """None for a trial that does not count."""
    found = _state_and_loss(trial, sign)
    mask = mask_of(trial, n_layers)
    if found is None or mask is None:
        return None
    return MaskTrial(trial.number, mask, *found)


def mask_of(trial: FrozenTrial, n_layers: int) -> LayerMask | None:
    """The trial's mask: from its attribute, else its parameters, else what it was enqueued with.

    None where none of these says all of ``n_layers`` flags.
    """
    text = trial.user_attrs.get(MASK_KEY)
    if isinstance(text, str):
        return LayerMask.parse(text) if len(text) == n_layers else None
    params = trial.params or trial.system_attrs.get("fixed_params", {})
    flags = [params.get(param_name(layer)) for layer in range(n_layers)]
    return None if None in flags else LayerMask(tuple(map(bool, flags)))


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
