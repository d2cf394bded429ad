"""Trials of workers that are certainly dead, taken over at once.

Optuna fails a trial whose worker has been silent for the grace period. Where every worker that
could hold a trial ran on this machine and its process is gone, nobody needs to wait for that.
"""

import contextlib
import os
from collections.abc import Sequence

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState
from sqlalchemy import delete

from mqasearch.results.tables import ClaimRow, WorkerRow
from mqasearch.search.roster import WorkerInfo, list_workers
from mqasearch.search.selection import Selection
from mqasearch.search.storage import Storage


def take_over(storage: Storage, selections: Sequence[Selection], me: str) -> int:
    """Queue the running trials again if no worker but ``me`` can be alive.

    Args:
        storage: of the selections.
        selections: whose trials are looked at.
        me: the name of this worker in the list.

    Returns:
        Number of trials that were taken over; the masks of those that had one are queued again.
    """
    # Before the list of workers is read: whoever runs one of these wrote itself down earlier.
    running = [
        trial
        for selection in selections
        for trial in selection.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    ]
    others = [row for row in list_workers(storage.engine, storage.patience) if row.worker != me]
    if not all(map(_is_dead, others)):
        return 0
    _forget(storage, [row.worker for row in others])
    n_orphans = 0
    for trial in running:
        with contextlib.suppress(UpdateFinishedTrialError):  # it ended meanwhile
            n_orphans += storage.optuna.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    return n_orphans


def _is_dead(worker: WorkerInfo) -> bool:
    """Whether it ran here and its process is gone. A reused process number says nothing."""
    if not worker.is_here:
        return False
    try:
        os.kill(worker.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _forget(storage: Storage, workers: Sequence[str]) -> None:
    """Cross the dead out and end their claims."""

    def once() -> None:
        with storage.engine.begin() as connection:
            for table in (ClaimRow.__table__, WorkerRow.__table__):
                connection.execute(delete(table).where(table.c.worker.in_(workers)))  # type: ignore[arg-type]

    if workers:
        storage.patience(once)
