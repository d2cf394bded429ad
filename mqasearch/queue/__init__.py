"""The queue: which masks of a study are to be scored, by which worker, and their results.

It is one table in the shared database. :class:`Queue` is all that a worker needs of it: a worker
adds or takes a task, keeps its lease with :func:`kept`, and finishes it or gives it back.
"""

from mqasearch.queue.lease import GRACE_SECONDS, kept
from mqasearch.queue.orphans import take_over
from mqasearch.queue.roster import Presence, list_workers
from mqasearch.queue.task import Result, Task, TaskState
from mqasearch.queue.task_queue import DEATHS, Queue

__all__ = [
    "DEATHS",
    "GRACE_SECONDS",
    "Presence",
    "Queue",
    "Result",
    "Task",
    "TaskState",
    "kept",
    "list_workers",
    "take_over",
]
