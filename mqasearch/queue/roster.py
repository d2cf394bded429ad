"""The list of workers at work: the table ``mqasearch_worker``.

A worker inserts its row when it starts, updates it every few seconds (the heartbeat), and deletes
it when it ends. The row of a worker that was killed stays, without heartbeats, until it is deleted
after ``FORGET_SECONDS``.
"""

import hashlib
import logging
import os
import socket
import threading
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from sqlalchemy import Connection, Engine, Table, delete, select, update

from mqasearch.database import Patience, WorkerRow, for_reading, insert_if_absent, seconds_now
from mqasearch.errors import DatabaseAwayError

logger = logging.getLogger(__name__)

TABLE = cast(Table, WorkerRow.__table__)

BEAT_SECONDS = 10.0
SILENT_SECONDS = 60.0
"""Silence after which a worker is listed as dead. When it loses its task is decided by the lease
(see ``Storage.grace``)."""
FORGET_SECONDS = 24 * 3600.0


@cache
def place() -> str:
    """A name of this machine and its process namespace, in which process numbers mean the same.

    The host's name alone is not enough: containers may share it and have processes of their own.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        space = f"{boot}:{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:  # not Linux
        space = str(uuid.getnode())
    return f"{socket.gethostname()}-{hashlib.sha256(space.encode()).hexdigest()[:8]}"


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """One worker of the list.

    Attributes:
        worker: the worker's name, which is unique.
        host, pid, device: where the worker runs.
        versions: package → version.
        study: the Optuna study of the trial that it runs now; None between trials.
        trial: the number of that trial; None between trials.
        trials_done: number of trials that it has finished since it started.
        seconds: seconds since it started.
        silent: seconds since its last heartbeat.
    """

    worker: str
    host: str
    pid: int
    device: str
    versions: Mapping[str, str]
    study: str | None
    trial: int | None
    trials_done: int
    seconds: float
    silent: float

    @property
    def alive(self) -> bool:
        """Whether its last heartbeat is recent."""
        return self.silent < SILENT_SECONDS

    @property
    def is_here(self) -> bool:
        """Whether its process can be seen from here by its number."""
        return self.worker.startswith(f"{place()}-")


def list_workers(engine: Engine, patience: Patience | None = None) -> list[WorkerInfo]:
    """All workers in the list, sorted by name; those that are alive come first."""
    query = select(
        *(TABLE.c[name] for name in ("worker", "host", "pid", "device", "versions")),
        *(TABLE.c[name] for name in ("study", "trial", "trials_done")),
        (seconds_now() - TABLE.c.started_at).label("seconds"),
        (seconds_now() - TABLE.c.seen_at).label("silent"),
    )

    def once() -> list[WorkerInfo]:
        with for_reading(engine).connect() as connection:
            return [WorkerInfo(**row._asdict()) for row in connection.execute(query)]

    workers = (patience or Patience())(once)
    return sorted(workers, key=lambda worker: (not worker.alive, worker.worker))


@dataclass
class Presence:
    """One worker's row in the list, for the length of a ``with`` block.

    A thread writes changes every few seconds, so that a trial does not wait for them.

    Attributes:
        engine, patience: those of an open storage.
        device: the device that the worker computes on.
        versions: package → version.
        worker: the worker's name; made up if not given.
        beat_seconds: seconds between two heartbeats.
    """

    engine: Engine
    patience: Patience
    device: str
    versions: Mapping[str, str]
    worker: str = field(default_factory=lambda: f"{place()}-{uuid.uuid4().hex[:12]}")
    beat_seconds: float = BEAT_SECONDS

    def __post_init__(self) -> None:
        self._now: dict[str, Any] = {"study": None, "trial": None, "trials_done": 0}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="presence", daemon=True)

    def __enter__(self) -> Self:
        self.patience(partial(self._transact, self._register))
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        self.patience(partial(self._transact, self._forget))

    def start_trial(self, study: str, trial: int) -> None:
        """Note the trial that the worker runs now."""
        self._now = {**self._now, "study": study, "trial": trial}

    def end_trial(self, *, done: bool = True) -> None:
        """Note that the worker runs no trial, and count the trial if it was done."""
        n_done = self._now["trials_done"] + done
        self._now = {"study": None, "trial": None, "trials_done": n_done}

    def _keep(self) -> None:
        while not self._stop.wait(self.beat_seconds):
            # The worker's main thread meets the same fault and reports it; the next beat retries.
            with suppress(DatabaseAwayError):
                self.patience(partial(self._transact, self._beat))

    def _transact(self, action: Any) -> None:
        with self.engine.begin() as connection:
            action(connection)

    def _register(self, connection: Connection) -> None:
        dead = TABLE.c.seen_at < seconds_now() - FORGET_SECONDS
        connection.execute(delete(TABLE).where(dead))
        facts = {
            "worker": self.worker,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "device": self.device,
            "versions": dict(self.versions),
            "started_at": seconds_now(),
            "seen_at": seconds_now(),
            **self._now,
        }
        insert_if_absent(connection, TABLE, [facts])

    def _beat(self, connection: Connection) -> None:
        mine = update(TABLE).where(TABLE.c.worker == self.worker)
        if not connection.execute(mine.values(seen_at=seconds_now(), **self._now)).rowcount:
            self._register(connection)  # others took this worker for dead and deleted its row

    def _forget(self, connection: Connection) -> None:
        connection.execute(delete(TABLE).where(TABLE.c.worker == self.worker))
