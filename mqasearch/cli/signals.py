"""How SIGINT and SIGTERM end a command: the trial in hand is given back first."""

import signal
import sys
from types import FrameType

from mqasearch.interruption import postpone, raise_postponed

LATEST = 5.0
"""Seconds after which a signal interrupts any work, since a database may be silent for long."""

AGAIN_AFTER = 0.02
"""Seconds until an interruption that Python has dropped is raised again."""


class Stopped(KeyboardInterrupt):
    """A signal: the trial in hand is given back, then the process ends with 128 + its number."""


class Signals:
    """SIGINT and SIGTERM interrupt once; a second one ends the process at once.

    The interruption is raised in the main thread, unless that is :func:`undisturbed
    <mqasearch.interruption.undisturbed>`. If it has just reached a finalizer, or the callback of a
    weak reference, Python drops the exception and only reports it to ``sys.unraisablehook``.
    Therefore that hook arranges that it is raised again a moment later.
    """

    received: int | None = None

    def install(self) -> None:
        """Take over both signals."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)
        sys.unraisablehook = _raise_again

    def end(self) -> None:
        """Prevent further interruptions, since one that comes while Python ends would kill it."""
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _stop(self, number: int, _: FrameType | None) -> None:
        self.received = number
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)
        # Imported only if a database is open. The clean-up must not wait for it for long.
        if (patience := sys.modules.get("mqasearch.database.patience")) is not None:
            patience.hurry()
        _interrupt()


def _interrupt(*_: object) -> None:
    stopped = Stopped()
    if not postpone(stopped):
        raise stopped
    signal.signal(signal.SIGALRM, lambda *_: raise_postponed())
    signal.setitimer(signal.ITIMER_REAL, LATEST)


def _raise_again(dropped: "sys.UnraisableHookArgs") -> None:
    if not isinstance(dropped.exc_value, Stopped):
        sys.__unraisablehook__(dropped)
        return
    signal.signal(signal.SIGALRM, _interrupt)
    signal.setitimer(signal.ITIMER_REAL, AGAIN_AFTER)
