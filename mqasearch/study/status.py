"""The state of the database: every study with its trials by state and its best value."""

from collections.abc import Iterator
from typing import Any

from mqasearch.mask import LayerMask
from mqasearch.queue import list_workers
from mqasearch.record import SharedStorage, Storage
from mqasearch.search_space import in_words
from mqasearch.study.ranking import best
from mqasearch.study.selection import (
    Selection,
    find_studies,
    known_studies,
    open_selections,
    why_ended,
)
from mqasearch.study.unconfirmed import why_unconfirmed

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
_STATES = ("complete", "pruned", "leased", "queued", "invalid")


def study_rows(storage: SharedStorage, name: str | None = None) -> Iterator[tuple[Any, ...]]:
    """One row per Optuna study, with the columns of ``STATUS_HEADERS``.

    The number of trials that are left is an estimate, because a plan depends on the losses.

    Raises:
        StorageError: ``name`` is given and there is no such study.
    """
    known = known_studies(storage) if name is None else find_studies(storage, name)
    for selection in open_selections(storage, known):
        yield study_row(selection)


def study_row(selection: Selection) -> tuple[Any, ...]:
    """One study's row, with the columns of ``STATUS_HEADERS``."""
    tasks = selection.tasks()
    counts = [sum(task.state == state for task in tasks) for state in _STATES]
    chosen = best(
        (task for task in tasks if task.state == "complete"), maximize=selection.facts.maximize
    )
    layers = value = error = None
    if chosen is not None and chosen.value is not None:
        layers = in_words(LayerMask.parse(chosen.mask), selection.facts.numbers)
        value = round(chosen.value, 6)
        stderr = selection.queue.facts(chosen).get("stderr")
        error = stderr and float(f"{stderr:.2g}")
    left = selection.trials_left()
    return (selection.study.study_name, *counts, left, value, error, layers)


def endings(storage: SharedStorage, name: str | None = None) -> list[str]:
    """What is missing in studies that ended, and why, one line each.

    Scores may be missing, so that there is no mask, or the held-out results of masks.

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
    """One row per worker in the list, with the columns of ``WORKER_HEADERS``."""
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
