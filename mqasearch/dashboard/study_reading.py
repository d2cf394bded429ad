"""Reading what the figures and pages show from the Optuna storage.

Everything comes from all studies, a study's trials and its queue, so a database role with SELECT
alone is enough. Studies that mqasearch did not create, and trials without a mask, are left out, and
so is what an attribute of another version lacks, since one odd study must not hide all others.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from mqasearch.dashboard.confirmed import Confirmed, read_confirmed
from mqasearch.dashboard.data import Comparison, State, StudyRows, TrialRow
from mqasearch.errors import UserError
from mqasearch.mask import LayerMask, is_mask
from mqasearch.queue import Queue, Task
from mqasearch.record import (
    CONFIRMATION_KEY,
    ENQUEUED,
    STUDY_KEY,
    SharedStorage,
    StudyFacts,
    facts_of,
    mapping,
    number,
    order_of,
    trial_facts,
)
from mqasearch.search_space import SearchSpace, in_words
from mqasearch.selectors import INVALID_KEY, MASK_KEY
from mqasearch.study import parts_of

_UNKNOWN: Mapping[str, Any] = {
    "study": "",
    "shape": {},
    "n_trials": None,
    "direction": "minimize",
    "versions": {},
}
"""What the facts of a study may lack and still be shown."""


def read_comparisons(storage: BaseStorage) -> tuple[Comparison, ...]:
    """Every comparison of the storage, newest first.

    Args:
        storage: one that fetches finished trials once, if it is read repeatedly.
    """
    by_name: dict[str, list[StudyRows]] = {}
    for frozen in storage.get_all_studies():
        facts = _ours(frozen.user_attrs.get(STUDY_KEY))
        if facts is None:
            continue
        study_id = storage.get_study_id_from_name(frozen.study_name)
        study = _study(
            study_id,
            frozen.study_name,
            frozen.directions[0] == StudyDirection.MAXIMIZE,
            facts,
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
    budgets = [(study.space, study.budget) for study in studies if study.selector != ENQUEUED]
    return tuple(
        replace(study, space=budgets[0][0], budget=budgets[0][1])
        if budgets and study.selector == ENQUEUED
        else study
        for study in studies
    )


def _ours(attributes: object) -> StudyFacts | None:
    """The study's facts if mqasearch wrote them, as far as they can be shown."""
    if not isinstance(attributes, Mapping):
        return None
    wanted = {"comparison": str, "selector": str, "n_layers": int}
    if not all(isinstance(attributes.get(key), kind) for key, kind in wanted.items()):
        return None
    try:
        facts = facts_of({**_UNKNOWN, **attributes, "spec": {**mapping(attributes.get("spec"))}})
        facts.space, facts.budget_words  # noqa: B018 (they raise if the facts make none)
    except (TypeError, ValueError, UserError):
        return None
    return facts


def _study(
    study_id: int,
    name: str,
    maximize: bool,
    facts: StudyFacts,
    confirmed: tuple[Confirmed, ...],
    trials: Sequence[FrozenTrial],
    in_hand: Sequence[Task],
) -> StudyRows:
    spec = facts.spec
    return StudyRows(
        study_id=study_id,
        name=name,
        comparison=facts.comparison,
        selector=facts.selector,
        space=facts.space,
        numbers=tuple(facts.numbers),
        budget=facts.budget_words,
        maximize=maximize,
        metric=_metric(spec),
        group=_group(spec, facts.comparison),
        n_trials=facts.n_trials,
        parts=parts_of(spec),
        confirmed=confirmed,
        trials=(
            *_rows(trials, facts),
            *(_row_in_hand(task, len(trials) + place, facts) for place, task in enumerate(in_hand)),
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


def _rows(trials: Sequence[FrozenTrial], facts: StudyFacts) -> tuple[TrialRow, ...]:
    space = facts.space
    ours = [trial for trial in trials if _has_mask(trial, space)]
    ended = sorted(
        (trial for trial in ours if trial.state.is_finished() and _value(trial) is not None),
        key=lambda trial: (trial.datetime_complete or datetime.max, trial.number),
    )
    order = {trial.number: place for place, trial in enumerate(ended, start=1)}
    rows = [_row(trial, facts, order.get(trial.number)) for trial in ours]
    reference = next((row.value for row in rows if row.n_converted == 0), None)
    return tuple(_with_delta(row, reference) for row in rows)


def _has_mask(trial: FrozenTrial, space: SearchSpace) -> bool:
    mask = trial.user_attrs.get(MASK_KEY)
    return isinstance(mask, str) and is_mask(mask) and space.holds(LayerMask.parse(mask))


def _row(trial: FrozenTrial, of: StudyFacts, evaluations: int | None) -> TrialRow:
    mask = trial.user_attrs[MASK_KEY]
    row = TrialRow(
        number=trial.number,
        mask=mask,
        n_converted=LayerMask.parse(mask).n_converted,
        value=_value(trial),
        state=_state(trial),
        delta=None,
        selector=of.selector,
        evaluations=evaluations,
        order=order_of(trial),
        words=_words(mask, of),
    )
    facts = trial_facts(trial)
    if facts is None:
        return row
    return replace(
        row,
        delta=facts.delta,
        kv_bytes=facts.kv_bytes_per_token or None,
        seconds=facts.seconds,
        reused=facts.reused,
        label=facts.name or "",
        given_up=facts.given_up,
        stderr=facts.stderr,
        delta_stderr=facts.delta_stderr,
        n_docs=tuple(facts.n_docs.values()),
    )


def _row_in_hand(task: Task, number: int, of: StudyFacts) -> TrialRow:
    return TrialRow(
        number=number,
        mask=task.mask,
        n_converted=task.n_converted,
        value=None,
        state="running" if task.state == "leased" else "waiting",
        delta=None,
        selector=of.selector,
        evaluations=None,
        label=task.name or "",
        order=task.order,
        words=_words(task.mask, of),
    )


def _words(mask: str, of: StudyFacts) -> str:
    return in_words(LayerMask.parse(mask), of.numbers).replace(",", ", ")


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
