"""What a converted model may lose: ``{metric: acc_norm, points: 1.0}``."""

from collections.abc import Callable, Sequence

from pydantic import BaseModel, ConfigDict, Field

from mqasearch.errors import unknown_name


class ToleranceEntry(BaseModel):
    """The largest loss of a metric that is tolerated.

    Attributes:
        metric: of a task; need not be the one that the search optimises.
        points: hundredths of the metric's unit; of an accuracy percentage points.
        task: one task only; without it every task that has the metric.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    metric: str
    points: float = Field(gt=0, allow_inf_nan=False)
    task: str | None = None

    @property
    def margin(self) -> float:
        """In the metric's unit."""
        return self.points / 100

    @property
    def words(self) -> str:
        """``within 1 point``."""
        return f"within {self.points:g} point{'' if self.points == 1 else 's'}"

    def fault(
        self, tasks: Sequence[str], has: Callable[[str], str], n_docs: int | None, least: int
    ) -> str:
        """Why no search could ever show it; empty if one could.

        Args:
            tasks: of the study.
            has: of a task: empty if it has the metric, else what is wrong.
            n_docs: held-out documents; None = as many as there are.
            least: documents that it takes at least.
        """
        if self.task is not None and self.task not in tasks:
            return unknown_name("task", self.task, tasks)
        said = [has(task) for task in tasks if self.covers(task)]
        if all(said):
            return said[0]
        if n_docs is not None and n_docs < least:
            return (
                f"{n_docs} held-out documents can never show {self.metric} {self.words}, even "
                f"if no answer changes; give documents.confirmation {least} or more, or more points"
            )
        return ""

    def covers(self, task: str) -> bool:
        """Whether it is of this task, if the task has the metric."""
        return self.task in (None, task)


def as_list(value: object) -> object:
    """One tolerance as a list of one; none as an empty list."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
