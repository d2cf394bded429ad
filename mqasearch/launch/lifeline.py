"""In a child: end when the parent ends, whatever ended it.

Two ways, since neither is enough alone. Linux tells a process of its parent's death (prctl(2),
PR_SET_PDEATHSIG), but not of one that came before it asked. The standard input, a pipe that the
parent holds open and never writes to, ends with the parent on every system; a thread waits for
that. Only one of them asks politely, since the second SIGTERM would keep the worker from giving
its trial back; the thread always has the last word.
"""

import ctypes
import os
import signal
import sys
import threading
import time

GRACE_SECONDS = 20.0
"""For the trial in hand to be given back."""

_PR_SET_PDEATHSIG = 1


def end_with(parent: int, pipe: int = 0, grace: float = GRACE_SECONDS) -> None:
    """Have this process told to stop when ``parent`` ends, and killed a grace period later.

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
