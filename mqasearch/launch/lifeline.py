"""End a child process when its parent ends, however the parent ends.

There are two ways, since neither is enough alone. Linux tells a process of its parent's death
(prctl(2), PR_SET_PDEATHSIG), but not if the parent died before the process asked. The standard
input, a pipe that the parent holds open and never writes to, ends with the parent on every system;
a thread waits for that. Only one of the two sends SIGTERM, since a second SIGTERM would keep the
worker from giving its trial back. In both cases the thread sends SIGKILL a grace period later.
"""

import ctypes
import os
import signal
import sys
import threading
import time

GRACE_SECONDS = 20.0
"""Seconds in which the trial in hand is given back."""

_PR_SET_PDEATHSIG = 1


def end_with(parent: int, pipe: int = 0, grace: float = GRACE_SECONDS) -> None:
    """Have this process sent SIGTERM when ``parent`` ends, and SIGKILL a grace period later.

    Args:
        parent: process id of the parent, as the parent knows it.
        pipe: file descriptor that ends with the parent.
        grace: seconds between SIGTERM and SIGKILL.
    """
    told = _ask_kernel() and os.getppid() == parent
    watch = threading.Thread(target=_watch, args=(pipe, grace, told), daemon=True, name="lifeline")
    watch.start()


def _ask_kernel() -> bool:
    if sys.platform != "linux":
        return False
    refused: int = ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    return not refused


def _watch(pipe: int, grace: float, told: bool) -> None:
    while os.read(pipe, 1024):
        continue
    if not told:
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace)
    os.kill(os.getpid(), signal.SIGKILL)
