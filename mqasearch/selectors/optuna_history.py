"""What an Optuna study remembers about masks.

Two user attributes of a trial carry what Optuna's own fields do not:

``mqasearch:mask``     the mask, as text, written as soon as it is proposed. Parameters arrive one
                       by one, each in a transaction; without the attribute another worker would
                       see a running trial without a mask.
``mqasearch:invalid``  on a failed trial: the mask itself is at fault (its score is not a number).
                       A failed trial without it says nothing about its mask (the worker died), so
                       the mask is as good as unseen.
"""

import math
import threading
from collections.abc import Iterable, Sequence

from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from mqasearch.mask import LayerMask
from mqasearch.selectors.history import History, MaskState, MaskTrial
from mqasearch.selectors.space import param_name
from mqasearch.selectors.taken import MaskSet

MASK_KEY = "mqasearch:mask"
INVALID_KEY = "mqasearch:invalid"


class StudyHistory(History):
    """Read from an Optuna study.

    Args:
        trials: of the study, those that count.
        number: of the next trial.
        masks: of ``trials``.
        n_settled: below this number all of the study's trials were finished.
    """

    def __init__(
        self, trials: Iterable[MaskTrial], number: int, masks: MaskSet, n_settled: int
    ) -> None:
        super().__init__(trials, number, masks)
        self.n_settled = n_settled


class HistoryReader:
    """Reads a study's history again and again at a cost that hardly grows with it.

    Finished trials cannot change, and Optuna's storages hand out the same object for one at every
    read, so what was made of the first trials, up to the first unfinished one, is kept. A cache and
    no memory: any other instance reads the same history.

    Args:
        n_layers: of the masks; trials of another length are no part of the history.
    """

    def __init__(self, n_layers: int) -> None:
        self.n_layers = n_layers
        self._reading = threading.Lock()  # several threads may share a study
        self._forget()

    def _forget(self) -> None:
        self._n_settled = 0
        self._last: FrozenTrial | None = None
        """The newest of the first trials that are all finished."""
        self._settled: list[MaskTrial] = []
        self._masks = MaskSet()

    def read(
        self,
        study: Study,
        trials: Sequence[FrozenTrial] | None = None,
        *,
        without: int | None = None,
    ) -> StudyHistory:
        """Every trial of the study whose mask is known and counts, by number.

        Left out: failed trials that are not marked invalid, trials of another search space or
        number of layers, and the trial numbered ``without`` (the one that asks).

        Args:
            study: to be read.
            trials: all of its trials by number, where the caller has just read them.
            without: the number of an unfinished trial, which is the next one to get a mask.
        """
        sign = -1.0 if study.direction == StudyDirection.MAXIMIZE else 1.0
        if trials is None:
            trials = study.get_trials(deepcopy=False)
        with self._reading:
            self._settle(trials, sign)
            n_settled, settled, masks = self._n_settled, [*self._settled], self._masks.copy()
        others = [
            found
            for trial in trials[n_settled:]
            if trial.number != without
            and (found := _mask_trial(trial, self.n_layers, sign)) is not None
        ]
        masks.update(trial.mask for trial in others)
        number = len(trials) if without is None else without
        return StudyHistory(settled + others, number, masks, n_settled)

    def _settle(self, trials: Sequence[FrozenTrial], sign: float) -> None:
        """Go on to the first trial that is not finished."""
        n = self._n_settled
        if n and (len(trials) < n or trials[n - 1] is not self._last):  # another storage, or study
            self._forget()
        for trial in trials[self._n_settled :]:
            if not trial.state.is_finished():
                break
            self._n_settled += 1
            self._last = trial
            found = _mask_trial(trial, self.n_layers, sign)
            if found is not None:
                self._settled.append(found)
                self._masks.update([found.mask])


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
