"""Nothing but the masks that were enqueued by name."""

from typing import ClassVar

from mqasearch.selectors.history import History
from mqasearch.selectors.selector import Selector, Wants


class EnqueuedSelector(Selector):
    """Of a study that only holds enqueued masks: wants none of its own."""

    name: ClassVar[str] = "enqueued"
    summary: ClassVar[str] = "the masks that the study file enqueues, and no others"
    ends: ClassVar[bool] = True

    def wants(self, history: History) -> Wants:
        """Nothing; done when every enqueued mask is finished."""
        return Wants(done=all(trial.finished for trial in history))
