"""What is in the database: every study, its trials by state, its best value."""

from collections.abc import Iterator
from typing import Any

from optuna.storages import BaseStorage
from optuna.trial import TrialState

from mqasearch.mask import LayerMask
from mqasearch.search.compare import best_trial
from mqasearch.search.roster import list_workers
from mqasearch.search.selection import (
    Selection,
    fail_stale_trials,
    find_studies,
    known_studies,
    open_selections,
    why_ended,
)
from mqasearch.search.storage import Storage
from mqasearch.search.unconfirmed import why_unconfirmed

STATUS_HEADERS = (
    "study",
    "complete",
    "probes",
    "running",
    "waiting",
    "failed",
    "left",
    "best value",
    "stderr",
    "best layers",
)
WORKER_HEADERS = ("worker", "device", "trial", "trials done", "trials per hour", "last seen")
_STATES = (
    TrialState.COMPLETE,
    TrialState.PRUNED,
    TrialState.RUNNING,
    TrialState.WAITING,
    TrialState.FAIL,
)


def study_rows(storage: BaseStorage, name: str | None = None) -> Iterator[tuple[Any, ...]]:
    """One row per Optuna study, as ``STATUS_HEADERS`` names it.

    What is left of a plan is an estimate: it depends on losses. Trials whose worker has not been
    heard of for longer than the grace period are failed first.

    Raises:
        StorageError: ``name`` is given and there is no such study.
    """
    known = known_studies(storage) if name is None else find_studies(storage, name)
    for selection in open_selections(storage, known):
        study = selection.study
        fail_stale_trials(study)
        trials = study.get_trials(deepcopy=False)
        counts = [sum(trial.state == state for trial in trials) for state in _STATES]
        best = best_trial(study)
        layers = best and ",".join(map(str, LayerMask.parse(best.facts.mask).layers))
        left = selection.trials_left()
        value = best and round(best.facts.value, 6)
        error = best and best.facts.stderr and float(f"{best.facts.stderr:.2g}")
        yield (study.study_name, *counts, left, value, error, layers)


def endings(storage: BaseStorage, name: str | None = None) -> list[str]:
    """What is missing of studies that ended, a line each, with the reason: scores, and with them
    masks, or the held-out results of masks.

    Raises:
        StorageError: ``name`` is given and there is no such study.
    """
    known = known_studies(storage) if name is None else find_studies(storage, name)
    files: dict[str, list[Selection]] = {}
    for selection in open_selections(storage, known):
        files.setdefault(selection.facts.study, []).append(selection)
    lines = []
    for selections in files.values():
        if line := why_ended(selections):
            lines.append(line)
        lines += why_unconfirmed(selections)
    return lines


def worker_rows(storage: Storage) -> Iterator[tuple[Any, ...]]:
    """One row per worker that is at work, as ``WORKER_HEADERS`` names it."""
    for worker in list_workers(storage.engine, storage.patience):
        pace = 3600 * worker.trials_done / worker.seconds if worker.seconds > 0 else 0.0
        yield (
            worker.worker,
            worker.device,
            None if worker.study is None else f"{worker.study} trial {worker.trial}",
            worker.trials_done,
            round(pace, 1),
            f"{worker.silent:.0f} s ago" + ("" if worker.alive else ", silent"),
        )
