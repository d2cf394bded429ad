"""One worker at a time decides what comes next in a study.

Between asking a selector for its outlook and publishing the mask of the new trial, nobody else may
do the same: two workers would both start the last trial, or the same step of a plan. The turn is
short, a few queries; scoring happens outside of it.

A turn can be lost without notice, when the database restarts or a connection is cut. What was found
of the study is then out of date, so the trial itself is made only if the study still has no newer
one: :meth:`SharedStorage.nothing_after`.
"""

import contextlib
import time
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self

from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError

from mqasearch.interruption import interruptible
from mqasearch.search.claims import Claims
from mqasearch.search.storage import Storage

LOCK_CLASS = 730_521_680
"""PostgreSQL's advisory locks (class, study number); any class that nobody else uses."""

LEASE_SECONDS = 15.0
"""On databases without advisory locks: after which a dead worker's turn is over."""

SHORTEST_WAIT, LONGEST_WAIT = 0.01, 0.1


class Turn:
    """One worker's turn in a study, from :meth:`__enter__` until :meth:`end`, at the latest until
    the end of the ``with`` block.

    PostgreSQL gives turns in the order they were asked for and takes a dead worker's back at once.
    Elsewhere a turn is a claim with a lease.
    """

    def __init__(self, storage: Storage, claims: Claims, study_id: int) -> None:
        self._storage = storage
        self._engine = storage.engine
        self._claims = claims
        self._study_id = study_id
        self._connection: Connection | None = None
        self._claimed = False

    def __enter__(self) -> Self:
        if self._engine.dialect.name == "postgresql":
            self._connection = self._storage.patience(self._lock)
            return self
        pause = SHORTEST_WAIT
        while not self._claims.claim(self._name, LEASE_SECONDS):
            with interruptible():
                time.sleep(pause)
            pause = min(2 * pause, LONGEST_WAIT)
        self._claimed = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end()

    def end(self) -> None:
        """Let the next one decide. A second call does nothing."""
        connection, self._connection = self._connection, None
        claimed, self._claimed = self._claimed, False
        if connection is not None:
            with contextlib.suppress(SQLAlchemyError):  # a lost connection has given the lock back
                connection.close()
        if claimed:
            self._claims.release(self._name)

    def starting(self, newest: int | None) -> AbstractContextManager[None]:
        """Within this block, no trial is made in the study if it has one newer than ``newest``.

        Raises:
            TrialTaken: from whatever would make one all the same. Somebody else came first.
        """
        return self._storage.optuna.nothing_after(self._study_id, newest)

    @property
    def _name(self) -> str:
        return f"turn of study {self._study_id}"

    def _lock(self) -> Connection:
        connection = self._engine.connect()
        try:
            connection.execute(
                text("SELECT pg_advisory_xact_lock(:class, :study)"),
                {"class": LOCK_CLASS, "study": self._study_id},
            )
        except BaseException:
            connection.close()
            raise
        return connection
