"""What the figures and pages show, as plain data, read from the Optuna storage.

Everything comes from all studies, a study's trials and its queue, so a database role with SELECT
alone is enough. Studies that mqasearch did not create, and trials without a mask, are left out, and
so is what an attribute of another version lacks, since one odd study must not hide all others.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import t

from mqasearch.dashboard.confirmed import Confirmed, by_task, read_confirmed
from mqasearch.queue import Queue, Task
from mqasearch.record import (
    CONFIRMATION_KEY,
    ENQUEUED,
    FACTS_KEY,
    STUDY_KEY,
    SharedStorage,
    count,
    mapping,
    number,
)
from mqasearch.selectors import INVALID_KEY, MASK_KEY
from mqasearch.statistics import Estimate
from mqasearch.study import HeldOut, Part, best, held_out, improvements, parts_of

State = Literal["waiting", "running", "complete", "pruned", "invalid", "failed"]
"""``pruned``: a probe (a mask below the budget that was scored) or a mask that was given up in a
race. ``invalid``: a mask without a finite score."""


@dataclass(frozen=True, slots=True)
class TrialRow:
    """One trial.

    Attributes:
        number: the trial's number in its study; a mask without one so far comes after all trials.
        mask: a row of 0 and 1, layer 0 first.
        n_converted: ones in the mask.
        value: the objective's value; None while unknown.
        state: see ``State``.
        delta: value − the original model's value.
        selector: the selector that proposed the mask.
        evaluations: masks that the selector had scored when this trial ended, this one included,
            whether the score was computed or found in the database; None before the end.
        kv_bytes: bytes of KV cache that a token takes.
        seconds: seconds that scoring took.
        reused: whether the score was found in the database.
        label: the name that the study file gives to an enqueued mask.
        given_up: documents after which the mask was clearly worse than another one of its size, so
            that ``value`` is an estimate; None if all were scored.
        stderr: standard error of ``value``; None if it is unknown.
        delta_stderr: standard error of ``delta``, paired by document; None if it is unknown.
        n_docs: number of documents of each task; empty if it is unknown.
    """

    number: int
    mask: str
    n_converted: int
    value: float | None
    state: State
    delta: float | None
    selector: str
    evaluations: int | None
    kv_bytes: int | None = None
    seconds: float | None = None
    reused: bool = False
    label: str = ""
    given_up: int | None = None
    stderr: float | None = None
    delta_stderr: float | None = None
    n_docs: tuple[int, ...] = ()

    @property
    def layers(self) -> tuple[int, ...]:
        """The converted layers, ascending, 0-based."""
        return tuple(layer for layer, flag in enumerate(self.mask) if flag == "1")

    @property
    def delta_margin(self) -> float | None:
        """Half the 95 % interval of ``delta``: Student's t, of the task with fewest documents."""
        if self.delta_stderr is None or not self.n_docs or min(self.n_docs) < 2:
            return None
        return float(t.ppf(0.975, min(self.n_docs) - 1)) * self.delta_stderr

    @property
    def estimate(self) -> Estimate | None:
        """The value with its standard error."""
        return None if self.value is None else Estimate(self.value, self.stderr)


@dataclass(frozen=True, slots=True)
class StudyRows:
    """One selector's study.

    Attributes:
        study_id: Optuna's number of the study, for links to Optuna's own dashboard.
        name: name of the Optuna study, ``<comparison>.<selector>``.
        comparison: the comparison that the study belongs to.
        selector: the selector that proposes its masks.
        n_converted: layers that a mask at the budget converts.
        n_layers: layers of the model.
        maximize: whether a larger value is better.
        metric: what the value is, for axis titles.
        group: a key that is equal for comparisons that differ only in name and budget.
        n_trials: largest number of trials; None if the selector's plan ends by itself.
        parts: parts of the objective; empty if the study file does not say.
        confirmed: held-out results; empty before the search has ended.
        trials: in the order of their numbers.
    """

    study_id: int
    name: str
    comparison: str
    selector: str
    n_converted: int
    n_layers: int
    maximize: bool
    metric: str
    group: str
    n_trials: int | None
    parts: tuple[Part, ...]
    confirmed: tuple[Confirmed, ...]
    trials: tuple[TrialRow, ...]

    def loss(self, row: TrialRow) -> float:
        """The value with its sign turned so that lower is better; infinite while unknown."""
        if row.value is None:
            return math.inf
        return -row.value if self.maximize else row.value

    def is_at_budget(self, row: TrialRow) -> bool:
        """Whether the row's mask converts exactly as many layers as the budget asks for."""
        return row.n_converted == self.n_converted

    @property
    def scored(self) -> tuple[TrialRow, ...]:
        """The rows that have a value, in the order in which they ended."""
        rows = [row for row in self.trials if row.value is not None and row.evaluations]
        return tuple(sorted(rows, key=lambda row: row.evaluations or 0))

    @property
    def original(self) -> TrialRow | None:
        """The unconverted model's row."""
        return next((row for row in self.scored if row.n_converted == 0), None)

    @property
    def best(self) -> TrialRow | None:
        """The best mask at the budget."""
        return best(self.scored, maximize=self.maximize, n_converted=self.n_converted)

    @property
    def best_confirmed(self) -> tuple[Confirmed, ...]:
        """The held-out results of the mask that is best now."""
        return self._of_best(is_healed=False)

    @property
    def best_healed(self) -> tuple[Confirmed, ...]:
        """The held-out results of the same mask after healing."""
        return self._of_best(is_healed=True)

    def _of_best(self, *, is_healed: bool) -> tuple[Confirmed, ...]:
        chosen = self.best
        return tuple(
            row
            for row in self.confirmed
            if chosen and row.mask == chosen.mask and row.is_healed == is_healed
        )

    @property
    def held_out(self) -> HeldOut | None:
        """The objective of the best mask on documents that the search never saw."""
        return held_out(self.parts, by_task(self.best_confirmed))

    @property
    def healed_held_out(self) -> HeldOut | None:
        """The objective of the healed best mask on documents that the search never saw."""
        return held_out(self.parts, by_task(self.best_healed))

    @property
    def improvements(self) -> list[TrialRow]:
        """The masks at the budget that were the best when they were scored."""
        return improvements(self.scored, maximize=self.maximize, n_converted=self.n_converted)


@dataclass(frozen=True, slots=True)
class Comparison:
    """The selectors of one study file at one budget, side by side."""

    name: str
    studies: tuple[StudyRows, ...]

    @property
    def selectors(self) -> tuple[StudyRows, ...]:
        """The studies without the one of enqueued masks, unless there is no other."""
        chosen = tuple(study for study in self.studies if study.selector != ENQUEUED)
        return chosen or self.studies

    @property
    def best(self) -> tuple[StudyRows, TrialRow] | None:
        """The best mask at the budget over all selectors, with its study."""
        bests = [(study, row) for study in self.selectors if (row := study.best) is not None]
        chosen = best((row for _, row in bests), maximize=self.studies[0].maximize)
        return next((pair for pair in bests if pair[1] is chosen), None)


def read_comparisons(storage: BaseStorage) -> tuple[Comparison, ...]:
    """Every comparison of the storage, newest first.

    Args:
        storage: one that fetches finished trials once, if it is read repeatedly.
    """
    by_name: dict[str, list[StudyRows]] = {}
    for frozen in storage.get_all_studies():
        attributes = _ours(frozen.user_attrs.get(STUDY_KEY))
        if attributes is None:
            continue
        study_id = storage.get_study_id_from_name(frozen.study_name)
        study = _study(
            study_id,
            frozen.study_name,
            frozen.directions[0] == StudyDirection.MAXIMIZE,
            attributes,
            read_confirmed(frozen.user_attrs.get(CONFIRMATION_KEY)),
            storage.get_all_trials(study_id, deepcopy=False),
            _in_hand(storage, study_id),
        )
        by_name.setdefault(study.comparison, []).append(study)
    comparisons = [Comparison(name, _at_one_budget(of)) for name, of in by_name.items()]
    return tuple(sorted(comparisons, key=lambda c: -c.studies[-1].study_id))


def _in_hand(storage: BaseStorage, study_id: int) -> Sequence[Task]:
    """Masks that are to be scored or are being scored, which Optuna's study does not show."""
    if not isinstance(storage, SharedStorage):
        return ()
    tasks = Queue(storage.engine, storage.patience).tasks(study_id)
    return [task for task in tasks if not task.is_finished]


def _at_one_budget(studies: Sequence[StudyRows]) -> tuple[StudyRows, ...]:
    """Give the study of masks enqueued by name, which have any size, the selectors' budget."""
    budgets = [study.n_converted for study in studies if study.selector != ENQUEUED]
    return tuple(
        replace(study, n_converted=budgets[0]) if budgets and study.selector == ENQUEUED else study
        for study in studies
    )


def siblings(comparison: Comparison, all_of_them: Iterable[Comparison]) -> tuple[Comparison, ...]:
    """Comparisons that differ from this one in the budget alone, itself included."""
    group = comparison.studies[0].group
    return tuple(other for other in all_of_them if other.studies[0].group == group)


def _ours(attributes: object) -> Mapping[str, Any] | None:
    """The study's attributes if mqasearch wrote them."""
    wanted = {"comparison": str, "selector": str, "n_converted": int, "n_layers": int}
    if not isinstance(attributes, Mapping):
        return None
    sound = all(isinstance(attributes.get(key), kind) for key, kind in wanted.items())
    return attributes if sound else None


def _study(
    study_id: int,
    name: str,
    maximize: bool,
    attributes: Mapping[str, Any],
    confirmed: tuple[Confirmed, ...],
    trials: Sequence[FrozenTrial],
    in_hand: Sequence[Task],
) -> StudyRows:
    spec = mapping(attributes.get("spec"))
    return StudyRows(
        study_id=study_id,
        name=name,
        comparison=attributes["comparison"],
        selector=attributes["selector"],
        n_converted=attributes["n_converted"],
        n_layers=attributes["n_layers"],
        maximize=maximize,
        metric=_metric(spec),
        group=_group(spec, attributes["comparison"]),
        n_trials=attributes.get("n_trials"),
        parts=parts_of(spec),
        confirmed=confirmed,
        trials=(
            *_rows(trials, attributes["selector"], attributes["n_layers"]),
            *(
                _row_in_hand(task, len(trials) + place, attributes["selector"])
                for place, task in enumerate(in_hand)
            ),
        ),
    )


def _metric(spec: Mapping[str, Any]) -> str:
    """``bits_per_byte on hellaswag`` for one task, the number of tasks for several."""
    tasks = spec.get("tasks")
    if not isinstance(tasks, Sequence) or isinstance(tasks, str) or not tasks:
        return "value"
    metrics = {str(task.get("metric", "value")) for task in tasks if isinstance(task, Mapping)}
    metric = metrics.pop() if len(metrics) == 1 else "value"
    if len(tasks) > 1 or not isinstance(tasks[0], Mapping):
        return f"{metric}, weighted over {len(tasks)} tasks"
    return f"{metric} on {tasks[0].get('name', 'its task')}"


def _group(spec: Mapping[str, Any], comparison: str) -> str:
    if not spec:
        return comparison
    rest = {key: value for key, value in spec.items() if key not in ("name", "budget")}
    return json.dumps(rest, sort_keys=True, default=str)


def _rows(trials: Sequence[FrozenTrial], selector: str, n_layers: int) -> tuple[TrialRow, ...]:
    ours = [trial for trial in trials if _has_mask(trial, n_layers)]
    ended = sorted(
        (trial for trial in ours if trial.state.is_finished() and _value(trial) is not None),
        key=lambda trial: (trial.datetime_complete or datetime.max, trial.number),
    )
    order = {trial.number: place for place, trial in enumerate(ended, start=1)}
    rows = [_row(trial, selector, order.get(trial.number)) for trial in ours]
    reference = next((row.value for row in rows if row.n_converted == 0), None)
    return tuple(_with_delta(row, reference) for row in rows)


def _has_mask(trial: FrozenTrial, n_layers: int) -> bool:
    mask = trial.user_attrs.get(MASK_KEY)
    return isinstance(mask, str) and len(mask) == n_layers and not set(mask) - {"0", "1"}


def _row(trial: FrozenTrial, selector: str, evaluations: int | None) -> TrialRow:
    facts = mapping(trial.user_attrs.get(FACTS_KEY))
    mask = trial.user_attrs[MASK_KEY]
    return TrialRow(
        number=trial.number,
        mask=mask,
        n_converted=mask.count("1"),
        value=_value(trial),
        state=_state(trial),
        delta=number(facts.get("delta")),
        selector=selector,
        evaluations=evaluations,
        kv_bytes=count(facts.get("kv_bytes_per_token")),
        seconds=number(facts.get("seconds")),
        reused=facts.get("reused") is True,
        label=str(facts.get("name") or ""),
        given_up=count(facts.get("given_up")),
        stderr=number(facts.get("stderr")),
        delta_stderr=number(facts.get("delta_stderr")),
        n_docs=tuple(n for n in map(count, mapping(facts.get("n_docs")).values()) if n),
    )


def _row_in_hand(task: Task, number: int, selector: str) -> TrialRow:
    return TrialRow(
        number=number,
        mask=task.mask,
        n_converted=task.n_converted,
        value=None,
        state="running" if task.state == "leased" else "waiting",
        delta=None,
        selector=selector,
        evaluations=None,
        label=task.name or "",
    )


def _with_delta(row: TrialRow, reference: float | None) -> TrialRow:
    """The row with its difference to the original, if the trial did not record one."""
    if row.delta is not None or row.value is None or reference is None:
        return row
    return replace(row, delta=row.value - reference)


def _state(trial: FrozenTrial) -> State:
    if trial.state == TrialState.FAIL:
        return "invalid" if trial.user_attrs.get(INVALID_KEY) else "failed"
    names: dict[TrialState, State] = {
        TrialState.WAITING: "waiting",
        TrialState.RUNNING: "running",
        TrialState.COMPLETE: "complete",
        TrialState.PRUNED: "pruned",
    }
    return names[trial.state]


def _value(trial: FrozenTrial) -> float | None:
    """The objective's value; for a probe, the value that it reported before it was pruned."""
    if trial.state == TrialState.COMPLETE:
        return number(trial.values[0]) if trial.values else None
    if trial.state == TrialState.PRUNED and trial.intermediate_values:
        return number(trial.intermediate_values[max(trial.intermediate_values)])
    return None
