"""Compares selectors at the budget; all values are read from the database."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import TrialState

from mqasearch.mask import KVHeads, LayerMask
from mqasearch.record import (
    ENQUEUED,
    StudyFacts,
    TrialFacts,
    confirmation,
    order_of,
    study_facts,
    trial_facts,
)
from mqasearch.search_space import in_words
from mqasearch.selectors import INVALID_KEY
from mqasearch.study.held_out_values import HeldOut, held_out, metric_of, parts_of
from mqasearch.study.ranking import best

HEADLINES = ("acc_norm", "acc")
"""A table shows the first of these metrics that a task has."""


@dataclass(frozen=True, slots=True)
class FinishedTrial:
    """A trial that was scored.

    Attributes:
        number: Optuna's number of it, or the task's number before it is recorded.
        facts: what it found.
        order: its place in the order in which the study's masks were proposed.
    """

    number: int
    facts: TrialFacts
    order: int

    @property
    def n_converted(self) -> int:
        """The number of layers that its mask converts."""
        return self.facts.n_converted

    @property
    def value(self) -> float:
        """The objective."""
        return self.facts.value

    @property
    def given_up(self) -> int | None:
        """Number of documents after which the mask was given up; None if all were scored."""
        return self.facts.given_up


@dataclass(frozen=True, slots=True)
class ComparisonRow:
    """One row of a comparison: a selector, or a mask that was enqueued by name.

    Attributes:
        comparison: name of the comparison that the row is part of.
        budget: what a mask at the budget saves at least, in the unit of the study's search space:
            with one number of ``kv_heads``, this is the number of layers that it converts; for an
            enqueued mask, the number of layers that the mask converts.
        selector: the selector's name, or the enqueued mask's name.
        mask: the best mask at the budget; None before there is one.
        layers: the layers that ``mask`` converts.
        kv_heads: KV heads of each layer with ``mask``; empty before there is one.
        words: ``layers``, with their numbers of KV heads if there are several.
        value: the search objective of ``mask``.
        delta: ``value`` − the original model's value.
        trial_number: number of the trial of ``mask``.
        n_trials: number of trials that were scored, including probes.
        n_scored: number of those whose scores were not all in the database already.
        n_failed: number of masks that cannot be scored.
        seconds: seconds spent scoring.
        confirmed: task → metric → held-out result; empty before confirmation.
        kv_bytes_per_token: bytes of KV cache per token of the model converted by ``mask``.
        metric: name of the metric of ``value``; ``value`` if the tasks have several metrics.
        stderr: standard error of ``value``.
        delta_stderr: standard error of ``delta``, paired by document.
        n_docs: task → number of search documents that ``mask`` was scored on.
        held_out: the objective on documents that the search never saw; None before confirmation.
        healed: task → metric → held-out result of the mask after healing, against the original;
            empty if the study does not heal, or before confirmation.
        healed_held_out: the objective of the healed mask on held-out documents.
    """

    comparison: str
    budget: int
    selector: str
    mask: str | None
    layers: tuple[int, ...]
    value: float | None
    delta: float | None
    trial_number: int | None
    n_trials: int
    n_scored: int
    n_failed: int
    seconds: float
    confirmed: dict[str, dict[str, Any]]
    kv_bytes_per_token: int | None
    metric: str = "value"
    stderr: float | None = None
    delta_stderr: float | None = None
    n_docs: dict[str, int] = field(default_factory=dict)
    held_out: HeldOut | None = None
    healed: dict[str, dict[str, Any]] = field(default_factory=dict)
    healed_held_out: HeldOut | None = None
    kv_heads: KVHeads = ()
    words: str = ""


def best_trial(study: optuna.Study) -> FinishedTrial | None:
    """The trial of the best mask at the budget; the earliest one if several are equal."""
    at_budget = _trials(study, TrialState.COMPLETE)
    return best(at_budget, maximize=study.direction == StudyDirection.MAXIMIZE)


def finished(study: optuna.Study) -> list[FinishedTrial]:
    """Every scored trial, including probes, in the order of their numbers."""
    return _trials(study, TrialState.COMPLETE, TrialState.PRUNED)


def _trials(study: optuna.Study, *states: TrialState) -> list[FinishedTrial]:
    return [
        FinishedTrial(trial.number, facts, order_of(trial))
        for trial in study.get_trials(deepcopy=False, states=states)
        if (facts := trial_facts(trial)) is not None
    ]


def compare(studies: Iterable[optuna.Study]) -> list[ComparisonRow]:
    """One row per selector in the order given, and one per mask that was enqueued by name."""
    rows = []
    for study in studies:
        facts = study_facts(study.user_attrs)
        if facts is not None and facts.selector == ENQUEUED:
            rows += [_named_row(facts, trial) for trial in finished(study)]
        else:
            rows.append(_row(study))
    return rows


def _named_row(of: StudyFacts, trial: FinishedTrial) -> ComparisonRow:
    facts = trial.facts
    return ComparisonRow(
        comparison=of.comparison,
        budget=facts.n_converted,
        selector=facts.name or facts.mask,
        mask=facts.mask,
        layers=LayerMask.parse(facts.mask).layers,
        value=facts.value,
        delta=facts.delta,
        trial_number=trial.number,
        n_trials=1,
        n_scored=int(not facts.reused),
        n_failed=0,
        seconds=facts.seconds,
        confirmed={},
        kv_bytes_per_token=facts.kv_bytes_per_token,
        metric=metric_of(parts_of(of.spec)),
        stderr=facts.stderr,
        delta_stderr=facts.delta_stderr,
        n_docs=facts.n_docs,
        kv_heads=of.kv_heads(facts.mask),
        words=in_words(LayerMask.parse(facts.mask), of.numbers),
    )


def _row(study: optuna.Study) -> ComparisonRow:
    facts = study_facts(study.user_attrs)
    assert facts is not None, "only mqasearch's own studies are compared"
    rows = finished(study)
    failed = study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
    row = ComparisonRow(
        comparison=facts.comparison,
        budget=facts.least,
        selector=facts.selector,
        mask=None,
        layers=(),
        value=None,
        delta=None,
        trial_number=None,
        n_trials=len(rows),
        n_scored=sum(not row.facts.reused for row in rows),
        n_failed=sum(INVALID_KEY in trial.user_attrs for trial in failed),
        seconds=sum(row.facts.seconds for row in rows),
        confirmed={},
        kv_bytes_per_token=None,
        metric=metric_of(parts_of(facts.spec)),
    )
    chosen = best_trial(study)
    if chosen is None:
        return row
    confirmed = confirmation(study.user_attrs)
    is_current = confirmed is not None and confirmed["trial_number"] == chosen.number
    tasks = confirmed["tasks"] if confirmed is not None and is_current else {}
    healed = confirmed.get("healed", {}).get("tasks", {}) if confirmed and is_current else {}
    parts = parts_of(facts.spec)
    return replace(
        _with_best(row, chosen, facts),
        confirmed=tasks,
        held_out=held_out(parts, tasks),
        healed=healed,
        healed_held_out=held_out(parts, healed),
    )


def _with_best(row: ComparisonRow, chosen: FinishedTrial, of: StudyFacts) -> ComparisonRow:
    return replace(
        row,
        mask=chosen.facts.mask,
        layers=LayerMask.parse(chosen.facts.mask).layers,
        value=chosen.facts.value,
        delta=chosen.facts.delta,
        trial_number=chosen.number,
        kv_bytes_per_token=chosen.facts.kv_bytes_per_token,
        stderr=chosen.facts.stderr,
        delta_stderr=chosen.facts.delta_stderr,
        n_docs=chosen.facts.n_docs,
        kv_heads=of.kv_heads(chosen.facts.mask),
        words=in_words(LayerMask.parse(chosen.facts.mask), of.numbers),
    )


def headline(metrics: dict[str, Any]) -> str:
    """The metric of a task that a table shows."""
    return next((name for name in HEADLINES if name in metrics), next(iter(metrics)))
