"""Where a signal may interrupt the main thread, and where it has to wait.

An exception that is raised in the middle of a database transaction can leave the transaction open,
with its locks held, and the code that then cleans up waits for its own locks. So a command that is
told to stop is interrupted while it computes or sleeps, but first finishes its work with the
database:

    with undisturbed():
        trial = start_trial()
        with interruptible():
            score = compute(trial)
        write(trial, score)

Blocks concern their own thread only. Outside of all blocks a thread is interruptible.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class _Here(threading.local):
    is_undisturbed = False
    postponed: BaseException | None = None


_here = _Here()


@contextmanager
def undisturbed() -> Iterator[None]:
    """An interruption within this block is raised when the outermost such block has ended."""
    before, _here.is_undisturbed = _here.is_undisturbed, True
    try:
        yield
    finally:
        _here.is_undisturbed = before
        if not before:
            raise_postponed()


@contextmanager
def interruptible() -> Iterator[None]:
    """Allow interruptions within an undisturbed block; first raises one that was postponed."""
    before, _here.is_undisturbed = _here.is_undisturbed, False
    try:
        raise_postponed()
        yield
    finally:
        _here.is_undisturbed = before


def postpone(interruption: BaseException) -> bool:
    """Keep an interruption until this thread may be interrupted; False if it may be now."""
    if _here.is_undisturbed:
        _here.postponed = interruption
    return _here.is_undisturbed


def raise_postponed() -> None:
    """Raise the interruption that was kept, if there is one."""
    interruption, _here.postponed = _here.postponed, None
    if interruption is not None:
        raise interruption
