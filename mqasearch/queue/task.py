"""What a row of the queue says, as plain data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

TaskState = Literal["queued", "leased", "complete", "pruned", "invalid"]
"""``queued`` and ``leased`` are to come; ``complete`` is a mask at the budget, ``pruned`` a probe
below it or a mask that lost a race, ``invalid`` one that cannot be scored."""


@dataclass(frozen=True, slots=True)
class Task:
    """A mask of a study, as it was when it was read.

    Attributes:
        task_id: number in the table.
        study_id: Optuna's number of the study.
        number: place in the order in which the study's masks were proposed, from 0.
        mask: the row of 0 and 1.
        state: see ``TaskState``.
        name: of a mask that was enqueued.
        value: the objective; None without a result.
        given_up: documents after which the mask lost a race; None if all were scored.
        fault: why an invalid mask has no value.
        out_of_memory: attempts that ended for want of memory.
        is_free: whether a worker that asks may take it.
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
        """Layers that the mask converts."""
        return self.mask.count("1")

    @property
    def is_finished(self) -> bool:
        """Whether it has a result, or can have none."""
        return self.state not in ("queued", "leased")

    @property
    def is_scored(self) -> bool:
        """Whether it has a value."""
        return self.state in ("complete", "pruned")


@dataclass(frozen=True, slots=True)
class Result:
    """What a task came to.

    Attributes:
        state: ``complete``, ``pruned`` or ``invalid``.
        value: the objective; None if invalid.
        given_up: documents after which the mask lost a race.
        fault: why there is no value.
        facts: what the trial found, as JSON can hold it.
    """

    state: TaskState
    value: float | None = None
    given_up: int | None = None
    fault: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
