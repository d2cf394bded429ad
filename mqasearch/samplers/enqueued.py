"""Nothing but the masks that were enqueued by name."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from mqasearch.mask import LayerMask
from mqasearch.samplers.base import MaskSampler, Outlook
from mqasearch.samplers.history import MaskTrial


class EnqueuedSampler(MaskSampler):
    """Of a study that only holds enqueued masks: never asks for a trial of its own.

    A trial started all the same gets a random mask at the budget.
    """

    name: ClassVar[str] = "enqueued"
    summary: ClassVar[str] = "the masks that the study file enqueues, and no others"
    ends: ClassVar[bool] = True

    def propose(self, history: Sequence[MaskTrial], rng: np.random.Generator) -> LayerMask:
        """A random unseen mask at the budget."""
        return self.random_mask(history, rng)

    def outlook(self, history: Sequence[MaskTrial]) -> Outlook:
        """WAIT while an enqueued mask is running, then DONE."""
        return Outlook.WAIT if any(not trial.finished for trial in history) else Outlook.DONE
