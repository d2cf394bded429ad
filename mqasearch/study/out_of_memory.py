"""Masks that ran out of memory.

Such a trial says nothing about its mask: other processes may have used the memory, or the worker's
device is small. So the task is given back, and the next worker that asks takes it. After
``ATTEMPTS`` attempts the mask is called invalid: otherwise a mask for which no worker has the
memory would keep its study from ending.
"""

import time

from mqasearch.interruption import interruptible
from mqasearch.queue import Result, Task

ATTEMPTS = 3

PAUSE_SECONDS = 5.0
"""Pause before the second attempt; before the third one it is four times as long. So a process that
takes the memory for a moment does not cost a mask all its attempts, even with many workers."""

_REASON = "out of memory"


def last_attempt(task: Task) -> Result | None:
    """The result of a task that ran out of memory again; None if it is to be tried again."""
    n_failed = task.out_of_memory + 1
    if n_failed < ATTEMPTS:
        return None
    return Result("invalid", fault=f"{_REASON}, {n_failed} times")


def lacks_memory(fault: str) -> bool:
    """Whether a trial's fault says that its mask ran out of memory."""
    return fault.startswith(_REASON)


def pause_before(task: Task) -> None:
    """If the mask ran out of memory before, give other processes time to free some."""
    with interruptible():
        time.sleep(PAUSE_SECONDS * task.out_of_memory**2)
