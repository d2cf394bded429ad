"""What a trial found, read from the attribute that mqasearch writes on it.

This is the only reader of that attribute: tables, mask JSON and the dashboard use it. Another
version of mqasearch, or anybody, may have written the attribute, so nothing in it is taken for
granted.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from optuna.trial import FrozenTrial

from mqasearch.mask import is_mask
from mqasearch.record.stored import count, mapping, number

FACTS_KEY = "mqasearch:facts"
NAME_KEY = "mqasearch:name"
TASK_KEY = "mqasearch:task"
"""On a trial: the number of the task that it records."""


@dataclass(frozen=True, slots=True)
class TrialFacts:
    """What a finished trial found.

    Attributes:
        mask: the mask as a string of digits, one level per layer.
        n_converted: number of converted layers.
        kv_bytes_per_token: bytes of the converted model's KV cache per token.
        value: the objective.
        delta: value − the original model's value.
        seconds: seconds that scoring took in this trial; 0 if every score was already known.
        reused: True if no new score was computed.
        scores: task → metric → value.
        name: name of an enqueued mask, else None.
        given_up: number of documents after which the mask was clearly worse than another one of its
            size, so that ``value`` is an estimate; None if all documents were scored.
        stderr: standard error of ``value``; None if it is unknown, as in trials that older versions
            of mqasearch wrote.
        delta_stderr: standard error of ``delta``, paired by document; None if it is unknown.
        stderrs: task → metric → standard error of the value in ``scores``; None if it is unknown.
        n_docs: task → number of documents that ``scores`` is computed from.
    """

    mask: str
    n_converted: int
    kv_bytes_per_token: int
    value: float
    delta: float
    seconds: float
    reused: bool
    scores: dict[str, dict[str, float]]
    name: str | None = None
    given_up: int | None = None
    stderr: float | None = None
    delta_stderr: float | None = None
    stderrs: dict[str, dict[str, float | None]] = field(default_factory=dict)
    n_docs: dict[str, int] = field(default_factory=dict)


def trial_facts(trial: FrozenTrial) -> TrialFacts | None:
    """A trial's facts; None if it has none, as an unfinished trial or a mask without a score."""
    return facts_of_trial(trial.user_attrs.get(FACTS_KEY))


def order_of(trial: FrozenTrial) -> int:
    """A trial's place in the order in which the study's masks were proposed.

    Trials are recorded as they end, so that their own numbers are in another order.
    """
    known = count(trial.user_attrs.get(TASK_KEY))
    return trial.number if known is None else known


def facts_of_trial(row: object) -> TrialFacts | None:
    """A trial's facts from plain data; None without a mask, a finite value and its difference."""
    found = mapping(row)
    mask, value, delta = found.get("mask"), number(found.get("value")), number(found.get("delta"))
    if not isinstance(mask, str) or not is_mask(mask) or value is None or delta is None:
        return None
    name = found.get("name")
    return TrialFacts(
        mask=mask,
        n_converted=len(mask) - mask.count("0"),
        kv_bytes_per_token=count(found.get("kv_bytes_per_token")) or 0,
        value=value,
        delta=delta,
        seconds=number(found.get("seconds")) or 0.0,
        reused=found.get("reused") is True,
        scores=_numbers(found.get("scores")),
        name=None if name is None else str(name),
        given_up=count(found.get("given_up")),
        stderr=number(found.get("stderr")),
        delta_stderr=number(found.get("delta_stderr")),
        stderrs={
            str(task): {str(metric): number(error) for metric, error in mapping(row).items()}
            for task, row in mapping(found.get("stderrs")).items()
        },
        n_docs=_counts(found.get("n_docs")),
    )


def _numbers(given: object) -> dict[str, dict[str, float]]:
    """Task → metric → value, as far as the values are finite numbers."""
    return {
        str(task): {
            str(metric): known
            for metric, value in mapping(row).items()
            if (known := number(value)) is not None
        }
        for task, row in mapping(given).items()
    }


def _counts(given: object) -> dict[str, int]:
    """Task → number of documents, as far as they are numbers above 0."""
    rows: Mapping[str, Any] = mapping(given)
    return {str(task): known for task, value in rows.items() if (known := count(value))}
