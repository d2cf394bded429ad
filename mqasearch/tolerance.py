"""What a converted model may lose: ``{metric: acc_norm, points: 1.0}``."""

from pydantic import BaseModel, ConfigDict, Field


class ToleranceEntry(BaseModel):
    """The largest loss of a metric that is tolerated.

    Attributes:
        metric: a metric of a task; it need not be the one that the search optimises.
        points: hundredths of the metric's unit; for an accuracy, percentage points.
        task: the only task that it covers; None = every task that has the metric.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    metric: str
    points: float = Field(gt=0, allow_inf_nan=False)
    task: str | None = None

    @property
    def margin(self) -> float:
        """The tolerated loss in the metric's unit."""
        return self.points / 100

    @property
    def words(self) -> str:
        """``within 1 point``."""
        return f"within {self.points:g} point{'' if self.points == 1 else 's'}"

    def covers(self, task: str) -> bool:
        """Whether it covers this task, if the task has the metric."""
        return self.task in (None, task)


def as_list(value: object) -> object:
    """One tolerance as a list of one; none as an empty list."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
