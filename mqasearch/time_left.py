"""Lines in the log that say how far a long piece of work is, and how long it still takes."""

import logging
import time


def in_words(seconds: float) -> str:
    """A duration in seconds or minutes: ``45 s``, ``3 min``."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


class TimeLeft:
    """Logs every ``seconds`` how far one piece of work is; short work logs nothing.

    Example:
        >>> told = TimeLeft(logging.getLogger(__name__), "scoring")
        >>> for n_done in (1, 2, 3):
        ...     told(n_done, 3)  # 40 seconds each: "scoring: 33 %, about 80 s left"
    """

    def __init__(self, log: logging.Logger, what: str, *, seconds: float = 30) -> None:
        """
        Args:
            log: where the lines go.
            what: what the work is, the beginning of every line.
            seconds: seconds from one line to the next.
        """
        self._log, self._what, self._seconds = log, what, seconds
        self._began = self._told = time.monotonic()

    def __call__(self, done: float, total: float) -> None:
        """Say that ``done`` of ``total`` is done, in any unit."""
        now = time.monotonic()
        if now - self._told < self._seconds or not 0 < done < total:
            return
        self._told = now
        left = (now - self._began) * (total - done) / done
        share = int(100 * done / total)
        self._log.info("%s: %d %%, about %s left", self._what, share, in_words(left))
