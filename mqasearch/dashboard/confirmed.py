"""Held-out results of a study's best mask, as the pages show them."""

from collections.abc import Iterable
from dataclasses import dataclass

from mqasearch.record import count, mapping, number


@dataclass(frozen=True, slots=True)
class Confirmed:
    """One held-out result of a study's best mask.

    Attributes:
        task: lm-eval's name.
        metric: a metric of the task.
        mask: the mask that was confirmed.
        value: the mask's value.
        original: value of the original model on the same documents.
        delta: mean paired difference, mask − original; None, like the ends of its interval, if the
            metric has no values per document.
        low: lower end of its 95 % interval.
        high: upper end.
        stderr: standard error of ``value``; None if it is unknown.
        n_docs: number of documents; None if it is unknown.
        is_healed: whether the mask was healed before it was scored.
    """

    task: str
    metric: str
    mask: str
    value: float
    original: float
    delta: float | None
    low: float | None
    high: float | None
    stderr: float | None = None
    n_docs: int | None = None
    is_healed: bool = False


def read_confirmed(attribute: object) -> tuple[Confirmed, ...]:
    """The held-out results that have a value of the mask and one of the original.

    First those of the mask as it is, then those of the healed one, if there are any.
    """
    confirmation = mapping(attribute)
    mask = str(confirmation.get("mask", ""))
    healed = mapping(confirmation.get("healed"))
    found = [
        _confirmed(task, metric, mask, row, is_healed=is_healed)
        for tasks, is_healed in ((confirmation.get("tasks"), False), (healed.get("tasks"), True))
        for task, metrics in mapping(tasks).items()
        for metric, row in mapping(metrics).items()
    ]
    return tuple(row for row in found if row is not None)


def by_task(rows: Iterable[Confirmed]) -> dict[str, dict[str, dict[str, float | None]]]:
    """Task → metric → value, standard error and documents, in the form of a confirmation."""
    found: dict[str, dict[str, dict[str, float | None]]] = {}
    for row in rows:
        numbers = {"value": row.value, "stderr": row.stderr, "n_docs": row.n_docs}
        found.setdefault(row.task, {})[row.metric] = numbers
    return found


def _confirmed(
    task: str, metric: str, mask: str, attribute: object, *, is_healed: bool
) -> Confirmed | None:
    row = mapping(attribute)
    value, original = number(row.get("value")), number(row.get("original"))
    if value is None or original is None:
        return None
    difference = mapping(row.get("delta"))
    ends = difference.get("ci95")
    interval = [difference.get("value"), *ends] if isinstance(ends, list) else []
    known = [end for end in map(number, interval) if end is not None]
    delta, low, high = known if len(known) == 3 else (None, None, None)
    stderr, n_docs = number(row.get("stderr")), count(row.get("n_docs"))
    return Confirmed(
        task, metric, mask, value, original, delta, low, high, stderr, n_docs, is_healed
    )
