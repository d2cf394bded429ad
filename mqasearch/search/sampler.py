"""The sampler of a study that many workers share."""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from optuna.study import Study
from optuna.trial import FrozenTrial

from mqasearch.mask import LayerMask
from mqasearch.selectors import MASK_KEY, Selector, SelectorSampler, StudyHistory, mask_of
from mqasearch.selectors.history import History

_TRIES = 5

Preference = Callable[[Sequence[LayerMask]], LayerMask]
"""Chooses one of several masks, at least one of which is given."""


def first(masks: Sequence[LayerMask]) -> LayerMask:
    """The preference of somebody who has none."""
    return masks[0]


@runtime_checkable
class MaskRegister(Protocol):
    """A storage that settles by itself which of several trials has a mask."""

    def publish_mask(self, trial_id: int, mask: str, since: int) -> bool:
        """Write a trial's mask unless a trial numbered ``since`` or more has it; whether it did."""
        ...


class SharedSampler(SelectorSampler):
    """Writes a mask to its trial as it is proposed, so that no other worker proposes it too.

    If another trial has written the same mask meanwhile, it proposes again: two workers that ask at
    once get two masks.

    Attributes:
        prefer: which one of equally wanted masks this worker takes, the cheapest for it, say.
    """

    def __init__(self, selector: Selector) -> None:
        super().__init__(selector)
        self.prefer: Preference = first

    def chosen(self, history: History) -> LayerMask:
        """The mask that is proposed next."""
        wanted = self.selector.wants(history).masks
        return self.prefer(wanted) if wanted else self.selector.spare(history)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Publish the mask of an enqueued trial."""
        mask = mask_of(trial, self.selector.n_layers)
        if mask is not None and MASK_KEY not in trial.user_attrs:
            _publish(study, trial, mask)

    def propose(self, study: Study, trial: FrozenTrial) -> LayerMask:
        """A mask for a trial that has none."""
        history = self.history(study, without=trial.number)
        for _ in range(_TRIES):
            mask = self.within_fixed(trial, self.chosen(history))
            if mask in history.taken:  # nothing else is left
                break
            if self._publish_first(study, trial, mask, history):
                return mask
            history = self.history(study, without=trial.number)
        _publish(study, trial, mask)
        return mask

    def _publish_first(
        self, study: Study, trial: FrozenTrial, mask: LayerMask, history: StudyHistory
    ) -> bool:
        """Publish a mask that is new to ``history``. False if another trial has it by now."""
        register = study._storage
        if isinstance(register, MaskRegister):
            return register.publish_mask(trial._trial_id, str(mask), history.n_settled)
        _publish(study, trial, mask)
        now = self.history(study, without=trial.number)
        return mask not in now.taken or all(
            other.mask != mask or other.number > trial.number for other in now
        )


def _publish(study: Study, trial: FrozenTrial, mask: LayerMask) -> None:
    # A FrozenTrial cannot write itself; Optuna's own samplers go through the storage too.
    study._storage.set_trial_user_attr(trial._trial_id, MASK_KEY, str(mask))
