"""From a model's responses to a score: lm-eval's own metrics, and two continuous ones of ours.

Accuracy on a few hundred documents cannot tell masks apart (its standard error is 3.5 points at
200 documents). If there is a right answer, we add

``bits_per_byte``
    −log₂ p(right answer | context) over the answer's UTF-8 bytes.
``choice_cross_entropy``
    −ln of the probability of the right answer under a softmax over the choices' log-likelihoods
    per byte: the smooth form of lm-eval's ``acc_bytes``. Multiple choice only.

and the metrics that compare a converted model with the original one: see ``comparison``.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from numbers import Real
from typing import Any

import numpy as np
from lm_eval.api.metrics import mean
from lm_eval.api.task import Task

from mqasearch.errors import ScoreError, UnknownNameError, UserError
from mqasearch.score import HIGHER_IS_BETTER, Score
from mqasearch.tasks.comparison import COMPARISONS, Comparison, compared_metrics
from mqasearch.tasks.offline import load_task
from mqasearch.tasks.prepared import Loader, PreparedDocument, PreparedTask

Responses = Sequence[Sequence[Any]]
"""For each document, for each request: ``(log-likelihood, is greedy)``, log-likelihood, or text."""

Row = dict[str, Any]
"""Metric → one document's value: a number, or an item for lm-eval's aggregation of the metric."""

_OURS = {
    "multiple_choice": ("bits_per_byte", "choice_cross_entropy"),
    "loglikelihood": ("bits_per_byte",),
}
_JACKKNIFE_GROUPS = 100


def higher_is_better(task_name: str, metric: str) -> bool:
    """Whether a higher value of a metric is better on a task, or on every member of a group.

    Raises:
        UnknownNameError: no such task, or no such metric on it.
        UserError: lm-eval does not say, or members of the group differ.
    """
    known = _directions(load_task, task_name)
    if metric not in known:
        raise UnknownNameError(f"metric of {task_name}", metric, known)
    if (direction := known[metric]) is None:
        others = ", ".join(name for name in known if known[name] is not None)
        raise UserError(
            f"lm-eval does not say whether a higher {metric} of {task_name} is better; "
            f"choose one of {others}"
        )
    return direction


@cache
def _directions(load: Loader, task_name: str) -> Mapping[str, bool | None]:
    """Metrics that all members of a task have → whether higher is better; None if it is unclear."""
    members = [_directions_of(task) for task in load(task_name, 0, 0)]
    common = [metric for metric in members[0] if all(metric in each for each in members)]
    ways = {metric: {each[metric] for each in members} for metric in common}
    return {metric: way.pop() if len(way) == 1 else None for metric, way in ways.items()}


def _directions_of(task: Task) -> dict[str, bool | None]:
    """Metric → whether higher is better; ``exact_match,strict-match`` is as ``exact_match``."""
    stated = {name: way for name, way in task.higher_is_better().items() if way is not None}
    ways = {**HIGHER_IS_BETTER, **stated}
    return {metric: ways.get(metric.partition(",")[0]) for metric in metrics_of(task)}


def metrics_of(task: Task) -> tuple[str, ...]:
    """Names of a task's metrics: lm-eval's own first, those after one of its filters last."""
    own = list(task.aggregation())
    ours = (*_OURS.get(task.OUTPUT_TYPE, ()), *COMPARISONS.get(task.OUTPUT_TYPE, ()))
    filters = [each.name for each in task._filters if each.name != "none"]
    filtered = [f"{metric},{name}" for metric in own for name in filters]
    return tuple(dict.fromkeys([*own, *ours, *filtered]))


def score_of(
    prepared: PreparedTask,
    responses: Responses,
    seconds: float,
    comparisons: Sequence[Comparison | None] = (),
) -> Score:
    """The score that a model's responses amount to.

    Args:
        prepared: the documents.
        responses: every document's responses, in the same order.
        seconds: the time that the model took, in seconds.
        comparisons: every document's comparison with the original; empty = the score has none.

    Raises:
        ScoreError: a log-likelihood or the mean of a metric is NaN or infinite.
    """
    return score_of_rows(prepared, rows_of(prepared, responses, comparisons), seconds)


def rows_of(
    prepared: PreparedTask, responses: Responses, comparisons: Sequence[Comparison | None] = ()
) -> list[Row]:
    """Every document's metrics.

    Args:
        prepared, responses, comparisons: as in ``score_of``.

    Raises:
        ScoreError: a log-likelihood is NaN or infinite.
    """
    rows = [
        _document_metrics(prepared.name, document, answers)
        for document, answers in zip(prepared.documents, responses, strict=True)
    ]
    for place, comparison in enumerate(comparisons):
        if comparison is not None:
            compared = compared_metrics(prepared.documents[place], responses[place], comparison)
            rows[place] = compared | rows[place]
    return rows


def score_of_rows(prepared: PreparedTask, rows: Sequence[Row], seconds: float) -> Score:
    """The score of a task's first documents, one for each row.

    Raises:
        ScoreError: the mean of a metric is NaN or infinite.
    """
    aggregations = prepared.documents[0].task.aggregation() if rows else {}
    values: dict[str, float] = {}
    stderr: dict[str, float] = {}
    per_document: dict[str, tuple[float, ...]] = {}
    for metric in rows[0] if rows else ():
        if not all(metric in row for row in rows):
            continue  # some members of a group may have metrics that others do not have
        items = [row[metric] for row in rows]
        aggregate = aggregations.get(metric.split(",")[0], mean)
        value, error = _aggregated(items, aggregate)
        if not math.isfinite(value):
            raise ScoreError(f"{prepared.name}: {metric} is {value}")
        values[metric], stderr[metric] = value, error
        if (singles := _per_document(items, aggregate)) is not None:
            per_document[metric] = singles
    return Score(values, stderr, len(rows), seconds, per_document)


def known_rows(prepared: PreparedTask, known: Score) -> list[Row]:
    """The rows that a score of a task's first documents was computed from.

    Empty if a score does not hold every value that its metrics were aggregated from. A perplexity
    is an example, as it weighs documents by their length.
    """
    if known.n_docs == 0 or set(known.documents) != set(known.values):
        return []
    aggregations = prepared.documents[0].task.aggregation()
    if any(aggregations.get(metric.split(",")[0], mean) is not mean for metric in known.values):
        return []
    return [
        {metric: values[index] for metric, values in known.documents.items()}
        for index in range(known.n_docs)
    ]


def _document_metrics(name: str, document: PreparedDocument, responses: Sequence[Any]) -> Row:
    _check_finite(name, responses)
    task = document.task
    metrics: Row = {}
    for filter_name, filtered in _filtered(document, responses).items():
        results = task.process_results(document.document, filtered)
        for metric, value in results.items():
            metrics.setdefault(metric, value)
            if filter_name != "none":
                metrics[f"{metric},{filter_name}"] = value
    if task.OUTPUT_TYPE == "loglikelihood":
        target = document.instances[0].args[1]
        metrics.setdefault("bits_per_byte", _bits_per_byte(responses[0][0], target))
    elif task.OUTPUT_TYPE == "multiple_choice":
        for metric, value in _choice_metrics(document, responses).items():
            metrics.setdefault(metric, value)
    return metrics


def _check_finite(name: str, responses: Sequence[Any]) -> None:
    for response in responses:
        likelihood = response[0] if isinstance(response, tuple) else response
        if isinstance(likelihood, Real) and not math.isfinite(float(likelihood)):
            raise ScoreError(f"{name}: a log-likelihood is {likelihood}")


def _filtered(document: PreparedDocument, responses: Sequence[Any]) -> dict[str, list[Any]]:
    """Filter name → responses, by lm-eval's filters (which read and write the instances)."""
    instances = list(document.instances)
    for instance, response in zip(instances, responses, strict=True):
        instance.resps = [response] * (instance.repeats or 1)
        instance.filtered_resps = {}
    document.task._instances = instances
    document.task.apply_filters()
    names = instances[0].filtered_resps
    return {name: [instance.filtered_resps[name] for instance in instances] for name in names}


def gold_choices(document: PreparedDocument) -> list[int]:
    """Indices of the right answers among the choices; empty if the document names none."""
    task = document.task
    if task.OUTPUT_TYPE != "multiple_choice":
        return []
    choices = task.doc_to_choice(document.document)
    gold = (task.doc_to_text if task.multiple_input else task.doc_to_target)(document.document)
    if isinstance(gold, str):
        gold = choices.index(gold) if gold in choices else -1
    golds = gold if isinstance(gold, list) else [gold]
    return [index for index in golds if 0 <= index < len(choices)]


def _choice_metrics(document: PreparedDocument, responses: Sequence[Any]) -> dict[str, float]:
    """Our metrics of a multiple-choice document; empty if it names no right answer."""
    right = gold_choices(document)
    if not right:
        return {}
    task = document.task
    answers = task.doc_to_choice(document.document)
    if task.multiple_input:  # the choices are contexts, and all are followed by the same text
        answers = [task.doc_to_target(document.document)] * len(answers)
    likelihoods = np.array([response[0] for response in responses[: len(answers)]], dtype=float)
    per_byte = likelihoods / np.array([_n_bytes(answer) for answer in answers])
    log_total = np.logaddexp.reduce(per_byte)
    return {
        "bits_per_byte": float(min(-per_byte[right])) / math.log(2),
        "choice_cross_entropy": float(log_total - np.logaddexp.reduce(per_byte[right])),
    }


def _bits_per_byte(likelihood: float, answer: str) -> float:
    return -likelihood / math.log(2) / _n_bytes(answer)


def _n_bytes(answer: str) -> int:
    return max(1, len(answer.encode()))


def _aggregated(
    items: Sequence[Any], aggregate: Callable[[Sequence[Any]], float]
) -> tuple[float, float]:
    """lm-eval's aggregate and its standard error.

    A mean has the usual standard error. For any other aggregate it is the grouped jackknife's
    (Efron & Tibshirani 1993, ch. 11), since lm-eval's bootstrap draws from a global random state
    and takes seconds.
    """
    value = float(aggregate(items))
    if len(items) < 2:
        return value, 0.0
    if aggregate is mean:
        return value, float(np.std(items, ddof=1)) / math.sqrt(len(items))
    n_groups = min(_JACKKNIFE_GROUPS, len(items))
    without = np.array(
        [
            aggregate([item for i, item in enumerate(items) if i % n_groups != group])
            for group in range(n_groups)
        ]
    )
    variance = (n_groups - 1) / n_groups * float(((without - without.mean()) ** 2).sum())
    return value, math.sqrt(variance)


def _per_document(
    items: Sequence[Any], aggregate: Callable[[Sequence[Any]], float]
) -> tuple[float, ...] | None:
    """The metric of every document by itself; None if it is not defined for single documents."""
    if all(isinstance(item, Real) for item in items) and aggregate is mean:
        return tuple(float(item) for item in items)
    singles = [aggregate([item]) for item in items]
    if all(isinstance(single, Real) and math.isfinite(float(single)) for single in singles):
        return tuple(float(single) for single in singles)
    return None
