"""Masks that ran out of memory.

Such a trial says nothing about its mask: other processes may have had the memory, or the worker's
device is small. So the task is given back, for whichever worker asks next. After some attempts the
mask is called invalid, so that one which no worker has the memory for keeps no study from its end.
"""

import time

from mqasearch.interruption import interruptible
from mqasearch.queue import Result, Task

ATTEMPTS = 3

PAUSE_SECONDS = 5.0
"""Before the second attempt, and four times as long before the third one: a process that takes the
memory for a moment must not cost a mask all its attempts, however many workers make them."""

_REASON = "out of memory"


def last_attempt(task: Task) -> Result | None:
    """What a task came to that ran out of memory again; None if somebody is to try it again."""
    n_failed = task.out_of_memory + 1
    if n_failed < ATTEMPTS:
        return None
    return Result("invalid", fault=f"{_REASON}, {n_failed} times")


def lacks_memory(fault: str) -> bool:
    """Whether that is why a mask cannot be scored, by what its trial says."""
    return fault.startswith(_REASON)


def pause_before(task: Task) -> None:
    """Give other processes time to let go of memory, if the mask ran out of it before."""
    with interruptible():
        time.sleep(PAUSE_SECONDS * task.out_of_memory**2)
