"""A row of the queue as plain data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

TaskState = Literal["queued", "leased", "complete", "pruned", "invalid"]
"""``queued`` and ``leased``: the task has no result yet. ``complete``: a scored mask at the budget.
``pruned``: a scored probe below the budget, or a mask that lost a race. ``invalid``: a mask that
cannot be scored."""


@dataclass(frozen=True, slots=True)
class Task:
    """A mask of a study, as it was when it was read.

    Attributes:
        task_id: number of the row in the table.
        study_id: Optuna's number of the study.
        number: place in the order in which the study's masks were proposed, from 0.
        mask: the mask as a string of digits, one level per layer.
        state: see ``TaskState``.
        name: name of a mask that was enqueued by name, else None.
        value: the objective; None without a result.
        given_up: number of documents after which the mask lost a race; None if all were scored.
        fault: why an invalid mask has no value.
        out_of_memory: number of attempts that ran out of memory.
        is_free: whether a worker that asks may take the task.
    """

    task_id: int
    study_id: int
    number: int
    mask: str
    state: TaskState
    name: str | None = None
    value: float | None = None
    given_up: int | None = None
    fault: str | None = None
    out_of_memory: int = 0
    is_free: bool = False

    @property
    def n_converted(self) -> int:
        """The number of layers that the mask converts."""
        return len(self.mask) - self.mask.count("0")

    @property
    def order(self) -> int:
        """The place in the order of proposals."""
        return self.number

    @property
    def is_finished(self) -> bool:
        """Whether the task has a result; that the mask cannot be scored is one too."""
        return self.state not in ("queued", "leased")

    @property
    def is_scored(self) -> bool:
        """Whether the task has a value."""
        return self.state in ("complete", "pruned")


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a task.

    Attributes:
        state: ``complete``, ``pruned`` or ``invalid``.
        value: the objective; None if invalid.
        given_up: number of documents after which the mask lost a race; None if it lost none.
        fault: why there is no value; None if there is one.
        facts: what the trial found, as data that JSON can hold.
    """

    state: TaskState
    value: float | None = None
    given_up: int | None = None
    fault: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
