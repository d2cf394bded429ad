"""Waiting for a database that is away for a while.

A worker that has scored for minutes must not lose its result because the database restarts just
then. After a fault that may pass by itself, the operation is tried again for
:attr:`Patience.seconds`. After any other fault (a missing table, a read-only database) it fails at
once.
"""

import logging
import sqlite3
import threading
from collections.abc import Callable
from typing import TypeVar
from weakref import WeakSet

from sqlalchemy import exc
from tenacity import RetryCallState, Retrying, retry_if_exception
from tenacity import wait_random_exponential as random_exponential

from mqasearch.errors import DatabaseAwayError
from mqasearch.interruption import undisturbed

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

SECONDS = 900.0
"""How long an outage may last: a restart, a failover, a machine that comes back."""

LONGEST_PAUSE = 5.0
"""The most seconds between two attempts."""

SQLITE_PASSING = ("locked", "busy", "full", "disk i/o error", "unable to open")
"""Words in SQLite's messages of faults that may pass: another process may end them, or somebody who
frees some space."""


def is_passing(error: BaseException) -> bool:
    """Whether the same operation may succeed later."""
    cause = _of_database(error)
    if isinstance(cause, sqlite3.Error):
        return any(sign in str(cause).lower() for sign in SQLITE_PASSING)
    if isinstance(cause, exc.DBAPIError):
        if isinstance(cause.orig, sqlite3.Error):
            return is_passing(cause.orig)
        lost = cause.connection_invalidated
        return lost or isinstance(cause, exc.OperationalError | exc.InterfaceError)
    # No connection of the pool became free, or one was lost earlier in the same session.
    return isinstance(cause, exc.TimeoutError | exc.PendingRollbackError)


PASSING_REFUSALS = ("starting up", "shutting down", "recovery", "too many", "connection slots")
"""Words in PostgreSQL's messages when the server accepts no connections for a while."""


def is_away(error: BaseException) -> bool:
    """Whether a connection failed in a way that may pass; a wrong password or name does not."""
    said = one_line(error).lower()
    is_refused = "fatal:" in said and not any(sign in said for sign in PASSING_REFUSALS)
    return is_passing(error) and not is_refused and "unable to open" not in said


def one_line(error: BaseException) -> str:
    """The database's own message in one line, without the statement and its parameters."""
    cause = _of_database(error)
    if isinstance(cause, exc.DBAPIError):
        cause = cause.orig
    return " ".join(str(cause or error).split()) or type(error).__name__


def _of_database(error: BaseException) -> BaseException | None:
    """SQLAlchemy's or SQLite's error, which Optuna may have wrapped in others; None if none."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, exc.SQLAlchemyError | sqlite3.Error):
        cause = cause.__cause__
    return cause


HURRIED_SECONDS = 5.0
"""How long an outage may last for a process that was told to stop."""

_hurried = threading.Event()


def hurry() -> None:
    """Make this process wait for a database only a few seconds from now on: it was told to stop."""
    _hurried.set()


def _attempt(operation: Callable[[], Answer]) -> Answer:
    with undisturbed():
        return operation()


class Patience:
    """Tries an operation again while its fault may pass.

    Once a thread's patience has run out, the thread tries operations only once, until one succeeds:
    otherwise its cleaning up after the failure would wait as long again at each step. This does not
    hold for other threads: they have not waited yet, and may hold a result that must not be lost.

    Attributes:
        seconds: the most seconds spent between the attempts at one operation. The time of the
            attempts themselves does not count: a process that was paused in the middle of one has
            not waited.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        self.seconds = seconds
        self._exhausted: WeakSet[threading.Thread] = WeakSet()

    def __reduce__(self) -> tuple[type["Patience"], tuple[float]]:
        """A copy in another process begins with full patience."""
        return Patience, (self.seconds,)

    def __call__(self, operation: Callable[[], Answer]) -> Answer:
        """Try ``operation`` until it succeeds, and return its result.

        ``operation`` must be idempotent: if the commit of an attempt reached the database and the
        answer was lost, the attempt is made again. A signal waits until the attempt has ended.

        Raises:
            DatabaseAwayError: the database stayed away.
        """
        attempts = Retrying(
            retry=retry_if_exception(is_passing),
            stop=self._is_over,
            wait=random_exponential(multiplier=0.1, max=LONGEST_PAUSE),
            before_sleep=self._tell,
            reraise=True,
        )
        try:
            answer: Answer = attempts(_attempt, operation)
        except Exception as error:
            if not is_passing(error):
                raise
            self._exhausted.add(threading.current_thread())
            raise DatabaseAwayError(
                f"the database did not answer for {self.seconds:.0f} s ({one_line(error)}); "
                "start it again, then run the same command again: finished trials are kept"
            ) from error
        self._exhausted.discard(threading.current_thread())
        return answer

    def _is_over(self, state: RetryCallState) -> bool:
        seconds = min(self.seconds, HURRIED_SECONDS) if _hurried.is_set() else self.seconds
        return threading.current_thread() in self._exhausted or state.idle_for >= seconds

    @staticmethod
    def _tell(state: RetryCallState) -> None:
        assert state.outcome is not None
        error = state.outcome.exception()
        assert error is not None
        level = logging.WARNING if state.attempt_number in (1, 10, 100) else logging.DEBUG
        logger.log(
            level,
            "the database does not answer (attempt %d): %s; trying again",
            state.attempt_number,
            one_line(error),
        )
