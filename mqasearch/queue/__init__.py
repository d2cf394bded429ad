"""The queue: which masks of a study are to be scored, by whom, and what they came to.

One table in the shared database. :class:`Queue` is all that a worker needs of it: it adds a task,
takes one, keeps its lease with :func:`kept`, and finishes it or gives it back.
"""

from mqasearch.queue.lease import GRACE_SECONDS, kept
from mqasearch.queue.rows import Result, Task, TaskState
from mqasearch.queue.tasks import DEATHS, Queue

__all__ = ["DEATHS", "GRACE_SECONDS", "Queue", "Result", "Task", "TaskState", "kept"]
