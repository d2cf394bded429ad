"""The objective on held-out documents, from a study's confirmation.

Only stored values are read, and each is checked, because another version may have written them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mqasearch.record import count, mapping, number
from mqasearch.statistics import Estimate, weighted_mean


@dataclass(frozen=True, slots=True)
class Part:
    """One task of an objective.

    Attributes:
        task: lm-eval's name of the task.
        metric: the metric that the search optimises on the task.
        weight: the task's weight in the objective.
    """

    task: str
    metric: str
    weight: float


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The objective of a mask on documents that the search never saw.

    Attributes:
        value: the objective's value.
        stderr: the standard error of ``value``; None if it is unknown.
        n_docs: task → number of documents.
    """

    value: float
    stderr: float | None
    n_docs: dict[str, int]


def parts_of(spec: Mapping[str, Any]) -> tuple[Part, ...]:
    """The tasks of a stored study file; empty if it does not give them."""
    tasks = spec.get("tasks")
    if not isinstance(tasks, Sequence) or not all(isinstance(task, Mapping) for task in tasks):
        return ()
    parts = [
        Part(str(task.get("name")), str(task.get("metric")), number(task.get("weight", 1.0)) or 0)
        for task in tasks
    ]
    return tuple(parts) if sum(part.weight for part in parts) > 0 else ()


def metric_of(parts: Sequence[Part]) -> str:
    """The metric's name; ``value`` if the tasks have several metrics."""
    metrics = {part.metric for part in parts}
    return metrics.pop() if len(metrics) == 1 else "value"


def held_out(parts: Sequence[Part], confirmed: Mapping[str, Any]) -> HeldOut | None:
    """The objective on the confirmation documents; None unless every task was confirmed.

    Args:
        parts: the tasks of the objective.
        confirmed: task → metric → ``{value, stderr, n_docs, …}``.
    """
    estimates, n_docs = [], {}
    for part in parts:
        row = mapping(mapping(confirmed.get(part.task)).get(part.metric))
        value, documents = number(row.get("value")), count(row.get("n_docs"))
        if value is None or documents is None:
            return None
        estimates.append(Estimate(value, number(row.get("stderr"))))
        n_docs[part.task] = documents
    if not estimates:
        return None
    mean = weighted_mean([part.weight for part in parts], estimates)
    return HeldOut(mean.value, mean.stderr, n_docs)
