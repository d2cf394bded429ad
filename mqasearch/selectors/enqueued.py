"""The selector of a study of nothing but masks that were enqueued by name."""

from typing import ClassVar

from mqasearch.selectors.history import History
from mqasearch.selectors.selector import Selector, Wants


class EnqueuedSelector(Selector):
    """Selector of a study that holds only enqueued masks: it wants no masks of its own."""

    name: ClassVar[str] = "enqueued"
    summary: ClassVar[str] = "the masks that the study file enqueues, and no others"
    ends: ClassVar[bool] = True

    def wants(self, history: History) -> Wants:
        """Wants nothing; done when every enqueued mask is finished."""
        return Wants(done=all(trial.finished for trial in history))
