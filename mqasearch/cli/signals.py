"""How SIGINT and SIGTERM end a command: the trial in hand is given back first."""

import signal
import sys
from types import FrameType
from typing import NoReturn

AGAIN_AFTER = 0.02
"""Seconds until an interruption that nobody saw is raised again."""


class Stopped(KeyboardInterrupt):
    """A signal: the trial in hand is given back, then the process ends with 128 + its number."""


class Signals:
    """SIGINT and SIGTERM interrupt once; a second one ends the process at once.

    Python raises the interruption at whatever instruction the main thread has reached. If that is
    a finalizer, or the callback of a weak reference, Python drops the exception and only reports
    it to ``sys.unraisablehook``. Therefore that hook raises it again, a moment later.
    """

    received: int | None = None

    def install(self) -> None:
        """Take over both signals."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)
        sys.unraisablehook = _raise_again

    def _stop(self, number: int, _: FrameType | None) -> NoReturn:
        self.received = number
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)
        # Imported only if a database is open. Whoever cleans up must not wait for it for long.
        if (patience := sys.modules.get("mqasearch.results.patience")) is not None:
            patience.hurry()
        raise Stopped


def _raise_again(dropped: "sys.UnraisableHookArgs") -> None:
    if not isinstance(dropped.exc_value, Stopped):
        sys.__unraisablehook__(dropped)
        return
    signal.signal(signal.SIGALRM, _interrupt)
    signal.setitimer(signal.ITIMER_REAL, AGAIN_AFTER)


def _interrupt(_: int, __: FrameType | None) -> NoReturn:
    raise Stopped
