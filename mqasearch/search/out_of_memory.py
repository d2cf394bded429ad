"""Trials that ran out of memory: another process may be the cause, so the mask is tried again.

Such a trial fails as if its worker had died: its mask is queued again, with its name if it has one,
for whichever worker asks next. After some attempts the mask is called invalid, so that one which no
worker has the memory for keeps no study from its end.
"""

import time

import optuna

from mqasearch.interruption import interruptible
from mqasearch.selectors import INVALID_KEY

ATTEMPTS = 3

PAUSE_SECONDS = 5.0
"""Before the second attempt, and four times as long before the third one: a process that takes the
memory for a moment must not cost a mask all its attempts, however many workers make them."""

OUT_OF_MEMORY_KEY = "mqasearch:out_of_memory"
"""How many trials of a mask ran out of memory. Each hands it to the one that takes its place."""


_REASON = "out of memory"


class OutOfMemoryTrial(Exception):
    """A trial failed for want of memory."""


def note_out_of_memory(trial: optuna.Trial) -> None:
    """Say why the trial fails, and at the last attempt that its mask cannot be scored."""
    n_failed = _n_failed(trial) + 1
    trial.set_user_attr(OUT_OF_MEMORY_KEY, n_failed)
    if n_failed >= ATTEMPTS:
        trial.set_user_attr(INVALID_KEY, f"{_REASON}, {n_failed} times")


def lacks_memory(fault: str) -> bool:
    """Whether that is why a mask cannot be scored, by what its trial says."""
    return fault.startswith(_REASON)


def pause_before(trial: optuna.Trial) -> None:
    """Give other processes time to let go of memory, if the mask ran out of it before."""
    with interruptible():
        time.sleep(PAUSE_SECONDS * _n_failed(trial) ** 2)


def _n_failed(trial: optuna.Trial) -> int:
    return int(trial.user_attrs.get(OUT_OF_MEMORY_KEY, 0))
