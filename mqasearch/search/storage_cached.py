"""What the workers of a study read and write trials through.

It is Optuna's cache of trials, without the sorting and searching that grows with a study.
Optuna sorts all trials by number at every read, and looks through all of them for those that wait.
Here they are kept in order, and the unfinished ones are known.
"""

import copy
from collections.abc import Container

from optuna.storages._cached_storage import _CachedStorage
from optuna.trial import FrozenTrial, TrialState

from mqasearch.search.storage_masks import publish_mask
from mqasearch.search.storage_optuna import SharedStorage


class TrialCache(_CachedStorage):
    """One process's view of the trials in ``backend``.

    Args:
        backend: every read of trials asks it for what is new.
    """

    def __init__(self, backend: SharedStorage) -> None:
        super().__init__(backend)
        self._shared = backend
        self._newest: dict[int, int] = {}
        """Study → highest number among its trials."""

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        """As Optuna's."""
        self._read_trials_from_remote_storage(study_id)
        with self._lock:
            trials = [*self._studies[study_id].trials.values()]
            if states is not None and not any(s in states for s in TrialState if s.is_finished()):
                trials = self._unfinished(study_id)
            if states is not None:
                trials = [trial for trial in trials if trial.state in states]
            return copy.deepcopy(trials) if deepcopy else trials

    def publish_mask(self, trial_id: int, mask: str, since: int) -> bool:
        """See :class:`mqasearch.search.sampler.MaskRegister`."""
        return publish_mask(self._shared, trial_id, mask, since)

    def _unfinished(self, study_id: int) -> list[FrozenTrial]:
        study = self._studies[study_id]
        numbers = (self._trial_id_to_study_id_and_number[n][1] for n in study.unfinished_trial_ids)
        return [study.trials[number] for number in sorted(numbers)]

    def _add_trials_to_cache(self, study_id: int, trials: list[FrozenTrial]) -> None:
        study = self._studies[study_id]
        in_order = True
        for trial in trials:
            newest = self._newest.get(study_id, -1)
            in_order &= trial.number in study.trials or trial.number > newest
            self._newest[study_id] = max(newest, trial.number)
            super()._add_trials_to_cache(study_id, [trial])
        if not in_order:  # a trial of ours was there before an older one of somebody else
            study.trials = dict(sorted(study.trials.items()))

    def delete_study(self, study_id: int) -> None:
        """As Optuna's."""
        self._newest.pop(study_id, None)
        super().delete_study(study_id)
