"""What a study remembers about masks: the only memory that a selector has."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from mqasearch.mask import LayerMask
from mqasearch.selectors.taken import MaskSet

MaskState = Literal["running", "complete", "pruned", "invalid"]


@dataclass(frozen=True, slots=True)
class MaskTrial:
    """One trial as a selector sees it.

    Attributes:
        number: the trial's number; ascending in a history.
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


class History(list[MaskTrial]):
    """A study's trials by number, with the set of their masks.

    Args:
        trials: the trials that count; a trial whose worker died without a score does not.
        number: the next trial's number, which is more than ``len`` if some trials do not count.
    """

    def __init__(self, trials: Iterable[MaskTrial] = (), number: int | None = None) -> None:
        super().__init__(trials)
        self.number = len(self) if number is None else number
        self._masks: MaskSet | None = None

    @property
    def taken(self) -> MaskSet:
        """The masks that are finished, running or invalid."""
        if self._masks is None:
            self._masks = MaskSet(trial.mask for trial in self)
        return self._masks


def taken(history: Sequence[MaskTrial]) -> MaskSet:
    """The masks that are finished, running or invalid."""
    return history.taken if isinstance(history, History) else History(history).taken
