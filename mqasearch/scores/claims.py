"""No score is computed twice at the same time.

Before a worker scores, it claims the score's key in SQL. The claim is a lease on the database's
clock, renewed while the worker computes; another worker that wants the same key meanwhile waits
for the score. A worker that dies stops renewing, and a worker that waits takes over.
"""

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

from sqlalchemy import Connection, Engine, Table, and_, delete, or_, select, update

from mqasearch.database import (
    ClaimRow,
    Patience,
    for_reading,
    insert_if_absent,
    seconds_now,
    seconds_started,
)
from mqasearch.errors import DatabaseAwayError
from mqasearch.interruption import interruptible
from mqasearch.score import Score, ScoreKey
from mqasearch.scores.store import ScoreStore

logger = logging.getLogger(__name__)

TABLE = cast(Table, ClaimRow.__table__)

LEASE_SECONDS = 60.0
SHORTEST_WAIT, LONGEST_WAIT = 0.05, 2.0
"""Seconds between two looks for a score that another worker computes."""


class Claims:
    """Scores that are computed once, even if several workers ask for them.

    Args:
        engine: SQLAlchemy's engine of an open storage.
        store: where scores are kept.
        patience: how long to wait for a database that is away.
        worker: a name that no other worker has; made up if not given.
        lease_seconds: seconds after which the claim of a worker that died is void.
    """

    def __init__(
        self,
        engine: Engine,
        store: ScoreStore,
        patience: Patience | None = None,
        *,
        worker: str | None = None,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        self._engine = engine
        self.store = store
        self._patience = patience or Patience()
        self._worker = worker or uuid.uuid4().hex
        self._lease = lease_seconds

    def get_or_score(self, key: ScoreKey, compute: Callable[[], Score]) -> tuple[Score, bool]:
        """The score under ``key``, and whether it was computed here.

        ``compute`` is called only by the one worker that holds the claim; if it raises, the claim
        is given up and the next worker tries.

        Raises:
            ScoreError: the computed score is not finite.
            DatabaseAwayError: the database stayed away.
        """
        pause = SHORTEST_WAIT
        while True:
            score = self.store.get(key)
            if score is not None:
                return score, False
            if self.claim(key.digest()):
                return self._score(key, compute)
            with interruptible():
                time.sleep(pause)
            pause = min(2 * pause, LONGEST_WAIT)

    def _score(self, key: ScoreKey, compute: Callable[[], Score]) -> tuple[Score, bool]:
        digest = key.digest()
        with self._kept(digest):
            try:
                score = self.store.get(key)  # written between our look at it and our claim
                if score is None:
                    with interruptible():
                        score = compute()
                    return self.store.put(key, score), True  # which ends the claim
            except BaseException:
                self.release(digest)
                raise
        self.release(digest)
        return score, False

    @contextmanager
    def holding(self, keys: Sequence[ScoreKey]) -> Iterator[list[ScoreKey]]:
        """Claim those of ``keys`` that nobody has scored or claimed, for the length of the block.

        The block should put their scores into the store. Claims of scores that it does not put
        there are given up.

        Raises:
            DatabaseAwayError: the database stayed away.
        """
        mine = [key for key in keys if self.claim(key.digest())]
        try:
            known = self.store.get_many(mine)
            wanted = [key for key in mine if key not in known]
            with self._kept(*(key.digest() for key in wanted)):
                yield wanted
        finally:
            for key in mine:
                self.release(key.digest())

    def of_others(self) -> set[str]:
        """Digests that other workers have claimed."""
        query = select(TABLE.c.digest).where(
            TABLE.c.worker != self._worker, TABLE.c.expires_at > seconds_now()
        )

        def once() -> set[str]:
            with for_reading(self._engine).connect() as connection:
                return set(connection.execute(query).scalars())

        return self._patience(once)

    def claim(self, digest: str, seconds: float | None = None) -> bool:
        """Claim ``digest`` for a lease, or for ``seconds``; return whether this worker has it now.

        Also true if it holds the claim already, so that a lost answer does no harm.
        """
        return self._transact(self._claim, digest, seconds or self._lease)

    def release(self, digest: str) -> None:
        """Give up this worker's claim, if it still has it."""
        self._transact(self._release, digest, 0.0)

    @contextmanager
    def _kept(self, *digests: str) -> Iterator[None]:
        """Renews claims in the background."""
        stop = threading.Event()
        renewal = threading.Thread(
            target=self._keep, args=(digests, stop), name="claim", daemon=True
        )
        renewal.start()
        try:
            yield
        finally:
            stop.set()
            renewal.join()

    def _keep(self, digests: Sequence[str], stop: threading.Event) -> None:
        kept = list(digests)
        while kept and not stop.wait(self._lease / 3):
            try:
                # Those whose score was put meanwhile have no claim any more.
                kept = [one for one in kept if self._transact(self._renew, one, self._lease)]
            except DatabaseAwayError:  # the worker's own thread will meet and report it
                continue
            if not kept and not stop.is_set():
                logger.warning("this worker was silent for too long; another one scores its mask")

    def _transact(
        self, action: Callable[[Connection, str, float], bool], digest: str, seconds: float
    ) -> bool:
        def once() -> bool:
            with self._engine.begin() as connection:
                return action(connection, digest, seconds)

        return self._patience(once)

    def _claim(self, connection: Connection, digest: str, seconds: float) -> bool:
        row = {"digest": digest, "worker": self._worker, "expires_at": seconds_now() + seconds}
        if insert_if_absent(connection, TABLE, [row]):
            return True
        # Nobody could renew while the server restarted, so all leases begin again.
        expired = and_(
            TABLE.c.expires_at < seconds_now(), seconds_started() + seconds < seconds_now()
        )
        take = (
            update(TABLE)
            .where(TABLE.c.digest == digest, or_(TABLE.c.worker == self._worker, expired))
            .values(worker=self._worker, expires_at=row["expires_at"])
        )
        return connection.execute(take).rowcount == 1

    def _renew(self, connection: Connection, digest: str, seconds: float) -> bool:
        renew = (
            update(TABLE)
            .where(TABLE.c.digest == digest, TABLE.c.worker == self._worker)
            .values(expires_at=seconds_now() + seconds)
        )
        return connection.execute(renew).rowcount == 1

    def _release(self, connection: Connection, digest: str, _: float) -> bool:
        give_up = delete(TABLE).where(TABLE.c.digest == digest, TABLE.c.worker == self._worker)
        return connection.execute(give_up).rowcount == 1
