"""Keeps the lease of a task while its mask is scored."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from mqasearch.errors import DatabaseAwayError
from mqasearch.queue.task import Task

logger = logging.getLogger(__name__)

GRACE_SECONDS = 150
"""Seconds of silence after which a worker's task is given to others."""

RENEWALS = 3
"""Renewals within the length of a lease, so that two of them may fail."""


class Leases(Protocol):
    """The part of a queue that is needed to keep a lease."""

    lease_seconds: float

    def renew(self, task: Task) -> bool:
        """Begin the lease anew. False if the task is no longer this worker's."""
        ...


@contextmanager
def kept(queue: Leases, task: Task) -> Iterator[None]:
    """Renew the lease of a task in the background, for the length of a ``with`` block."""
    stop = threading.Event()
    thread = threading.Thread(target=_keep, args=(queue, task, stop), name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _keep(queue: Leases, task: Task, stop: threading.Event) -> None:
    while not stop.wait(queue.lease_seconds / RENEWALS):
        try:
            if not queue.renew(task) and not stop.is_set():
                logger.warning("this worker was silent for too long; another one has its mask")
                return
        except DatabaseAwayError:  # the worker's main thread meets the same fault and reports it
            continue
