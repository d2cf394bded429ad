"""Makes the tasks of studies from before there was a queue, from the trials in Optuna's studies."""

from collections.abc import Iterator, Sequence
from typing import Any

from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from mqasearch.record.attributes import STUDY_KEY
from mqasearch.record.trial_facts import FACTS_KEY, NAME_KEY, TASK_KEY
from mqasearch.search_space import SearchSpace
from mqasearch.selectors import INVALID_KEY, mask_of

_SCORED = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned"}


def task_rows(storage: BaseStorage) -> list[dict[str, Any]]:
    """Rows of ``mqasearch_task``: one for each mask of each study.

    The task of a mask that was scored, or cannot be scored, is finished and recorded. The task of a
    mask that was enqueued, or was being scored, is queued.
    """
    return [row for study in storage.get_all_studies() for row in _of_study(storage, study)]


def end_old_trials(storage: BaseStorage) -> None:
    """Fail the running trials of our studies that record no task: their masks are in the queue.

    Waiting trials are left to the workers, which queue all trials that anybody enqueued.
    """
    for study in storage.get_all_studies():
        if STUDY_KEY not in study.user_attrs:
            continue
        study_id = storage.get_study_id_from_name(study.study_name)
        for trial in storage.get_all_trials(study_id, deepcopy=False, states=(TrialState.RUNNING,)):
            if TASK_KEY not in trial.user_attrs:
                trial_id = storage.get_trial_id_from_study_id_trial_number(study_id, trial.number)
                storage.set_trial_state_values(trial_id, TrialState.FAIL)


def _of_study(storage: BaseStorage, study: Any) -> Iterator[dict[str, Any]]:
    facts = study.user_attrs.get(STUDY_KEY)
    if not isinstance(facts, dict):
        return
    space = SearchSpace(facts["n_layers"], least=1)  # there was one level then
    study_id = storage.get_study_id_from_name(study.study_name)
    trials = storage.get_all_trials(study_id, deepcopy=False)
    rows: dict[str, dict[str, Any]] = {}
    for trial in _finished_first(trials):
        row = _row(trial, space)
        if row is not None:
            rows.setdefault(row["mask"], row)
    for number, row in enumerate(rows.values()):
        yield {"study_id": study_id, "number": number, **row}


def _finished_first(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    return sorted(trials, key=lambda trial: (not trial.state.is_finished(), trial.number))


def _row(trial: FrozenTrial, space: SearchSpace) -> dict[str, Any] | None:
    """The row of a trial's mask; None if the trial has no mask or says nothing about it."""
    mask = mask_of(trial, space)
    if mask is None:
        return None
    facts = trial.user_attrs.get(FACTS_KEY)
    row: dict[str, Any] = {
        "mask": str(mask),
        "name": trial.user_attrs.get(NAME_KEY),
        "state": "queued",
        "value": None,
        "given_up": None,
        "fault": None,
        "facts": facts if isinstance(facts, dict) else None,
        "recorded": True,
    }
    if trial.state in _SCORED:
        row["value"] = _value(trial)
        row["given_up"] = (row["facts"] or {}).get("given_up")
        return None if row["value"] is None else row | {"state": _SCORED[trial.state]}
    if trial.state == TrialState.FAIL:
        fault = trial.user_attrs.get(INVALID_KEY)
        return None if fault is None else row | {"state": "invalid", "fault": str(fault)}
    return row | {"recorded": False, "facts": None}


def _value(trial: FrozenTrial) -> float | None:
    reported = trial.intermediate_values
    value = trial.values[0] if trial.values else reported[max(reported)] if reported else None
    return None if value is None else float(value)
