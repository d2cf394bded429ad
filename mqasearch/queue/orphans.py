"""Gives tasks of workers that are certainly dead to others at once.

A worker without heartbeats loses its task when its lease is over. If it ran on this machine and its
process is gone, nobody needs to wait for that.
"""

import os
from collections.abc import Sequence

from sqlalchemy import delete

from mqasearch.database import ClaimRow, WorkerRow
from mqasearch.queue.roster import WorkerInfo, list_workers
from mqasearch.queue.task_queue import Queue


def take_over(queue: Queue, me: str) -> int:
    """Give up the tasks of workers whose process is gone.

    Args:
        queue: the queue; its database also holds the list of workers.
        me: the name of this worker in the list.

    Returns:
        The number of tasks that were given up.
    """
    workers = list_workers(queue.engine, queue.patience)
    dead = [row.worker for row in workers if row.worker != me and _is_dead(row)]
    n_tasks = queue.give_up_leases(dead)
    _forget(queue, dead)
    return n_tasks


def _is_dead(worker: WorkerInfo) -> bool:
    """Whether it ran here and its process is gone; False if the process number is in use again."""
    if not worker.is_here:
        return False
    try:
        os.kill(worker.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _forget(queue: Queue, workers: Sequence[str]) -> None:
    """Delete the dead workers' rows and their claims."""

    def once() -> None:
        with queue.engine.begin() as connection:
            for table in (ClaimRow.__table__, WorkerRow.__table__):
                connection.execute(delete(table).where(table.c.worker.in_(workers)))  # type: ignore[arg-type]

    if workers:
        queue.patience(once)
