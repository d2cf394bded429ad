"""The table ``mqasearch_task``: the queue of every study.

These hold whatever workers do at the same time, and however they end:

- No mask is twice in a study, and no two tasks of a study have the same number. The database's
  constraints ensure that, so a study of n trials has n tasks.
- A task belongs to one worker at a time, for the length of a lease on the database's clock. If the
  worker dies, the lease runs out, and the next worker that asks takes the task.
- Only the worker that has the lease can finish a task.
- A call whose answer was lost may be made again.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar, cast

from sqlalchemy import (
    Connection,
    Engine,
    Table,
    and_,
    case,
    column,
    delete,
    false,
    func,
    not_,
    or_,
    select,
    table,
    true,
    update,
)
from sqlalchemy.sql.elements import ColumnElement

from mqasearch.database import (
    Patience,
    TaskRow,
    for_reading,
    insert_if_absent,
    seconds_now,
    seconds_started,
)
from mqasearch.queue.lease import GRACE_SECONDS
from mqasearch.queue.task import Result, Task

T = TypeVar("T")

TABLE = cast(Table, TaskRow.__table__)

DEATHS = 4
"""Number of workers that died with a mask after which the mask is called invalid. Otherwise a mask
that makes its process run out of memory would kill all workers, one after the other."""

_DEADLY = f"{DEATHS} workers died while they scored it"

_STUDY_KEY = "mqasearch:study"
_ATTRIBUTES = table("study_user_attributes", column("study_id"), column("key"))
"""Optuna's table. A study of ours is complete once it has the attribute of that key, which is
written last."""

_COLUMNS = [
    TABLE.c[name]
    for name in (
        *("task_id", "study_id", "number", "mask", "state"),
        *("name", "value", "given_up", "fault", "out_of_memory"),
    )
]
_UNFINISHED = TABLE.c.state.in_(("queued", "leased"))


class Queue:
    """The tasks of all studies, as one worker sees them.

    Example:
        >>> from sqlalchemy import create_engine
        >>> from mqasearch.database import schema
        >>> engine = create_engine("sqlite://")
        >>> schema.upgrade(engine)
        >>> queue = Queue(engine, worker="me")
        >>> task = queue.add(study_id=1, number=0, mask="0110")
        >>> queue.finish(task, Result("complete", value=0.25))
        True
        >>> [(task.mask, task.state, task.value) for task in queue.tasks(study_id=1)]
        [('0110', 'complete', 0.25)]

    Args:
        engine: the database's engine; :func:`mqasearch.database.schema.upgrade` made its tables.
        patience: how long to wait for a database that is away.
        worker: this worker's name, which no other has; empty if no tasks are taken.
        lease_seconds: length of a lease; a worker that does not renew it loses its task.
    """

    def __init__(
        self,
        engine: Engine,
        patience: Patience | None = None,
        *,
        worker: str = "",
        lease_seconds: float = GRACE_SECONDS,
    ) -> None:
        self.engine = engine
        self.patience = patience or Patience()
        self.worker = worker
        self.lease_seconds = lease_seconds

    def tasks(self, study_id: int) -> list[Task]:
        """Every task of a study, sorted by number."""
        query = (
            select(*_COLUMNS, self._free.label("is_free"))
            .where(TABLE.c.study_id == study_id)
            .order_by(TABLE.c.number)
        )
        return [Task(*row) for row in self._read(query)]

    def facts(self, task: Task) -> Mapping[str, Any]:
        """What the trial of a finished task found; empty if the task has no result."""
        rows = self._read(select(TABLE.c.facts).where(TABLE.c.task_id == task.task_id))
        return rows[0].facts or {} if rows else {}

    def take(self, study_id: int) -> Task | None:
        """Lease the first free task to this worker; None if none is free.

        A task that this worker already holds counts as free: the answer of an earlier call was
        lost. A task with which too many workers died becomes invalid, and the next one is tried.
        """
        while True:
            task = self._write(partial(self._take, study_id=study_id))
            if task is None or task.state == "leased":
                return task

    def add(self, study_id: int, number: int, mask: str) -> Task | None:
        """Add a task and lease it to this worker.

        Args:
            study_id: Optuna's number of the study.
            number: how many tasks the study had when the caller decided on the mask.
            mask: the mask to be scored.

        Returns:
            The task; None if the study has that mask, or another task of that number, so that the
            caller must read the study's tasks again.
        """
        row = {
            "study_id": study_id,
            "number": number,
            "mask": mask,
            "state": "leased",
            "worker": self.worker,
            "lease_until": seconds_now() + self.lease_seconds,
        }
        mine = select(*_COLUMNS, true()).where(
            TABLE.c.study_id == study_id,
            TABLE.c.number == number,
            TABLE.c.mask == mask,
            TABLE.c.worker == self.worker,
            TABLE.c.state == "leased",
        )

        def once(connection: Connection) -> Task | None:
            insert_if_absent(connection, TABLE, [row])
            found = connection.execute(mine).one_or_none()  # an earlier attempt's too
            return None if found is None else Task(*found)

        return self._write(once)

    def enqueue(self, study_id: int, name: str, mask: str) -> Task:
        """Put a mask with a name at the end of the queue, or return its task if there is one."""
        return self._write(partial(self._enqueue, study_id=study_id, name=name, mask=mask))

    def finish(self, task: Task, result: Result) -> bool:
        """Write the result of a task. False if the task is no longer this worker's."""
        values = {
            "state": result.state,
            "value": result.value,
            "given_up": result.given_up,
            "fault": result.fault,
            "facts": dict(result.facts),
            "lease_until": None,
        }
        query = select(TABLE.c.task_id).where(
            TABLE.c.task_id == task.task_id,
            TABLE.c.worker == self.worker,
            TABLE.c.state == result.state,
        )

        def once(connection: Connection) -> bool:
            if self._change(connection, task, values):
                return True
            return connection.execute(query).one_or_none() is not None  # an earlier attempt did it

        return self._write(once)

    def give_back(self, task: Task, *, died: bool = False, out_of_memory: bool = False) -> None:
        """Give back a task without a result, for any worker to take.

        Args:
            task: a task that this worker holds.
            died: the mask may be at fault; this counts as a worker that died with it.
            out_of_memory: the worker ran out of memory.
        """
        values: dict[str, Any] = {"state": "queued", "lease_until": None}
        if died:
            values |= _one_more_death()
        if out_of_memory:
            values["out_of_memory"] = task.out_of_memory + 1
        self._write(partial(self._change, task=task, values=values))

    def give_up_leases(self, workers: Sequence[str], *, died: bool = True) -> int:
        """Give back all tasks that some workers hold.

        Args:
            workers: workers that are gone, or did not get the answers to their calls.
            died: whether their tasks may be at fault.

        Returns:
            The number of tasks.
        """
        if not workers:
            return 0
        values: dict[str, Any] = {"state": "queued", "lease_until": None}
        if died:
            values |= _one_more_death()
        statement = (
            update(TABLE)
            .where(TABLE.c.worker.in_(workers), TABLE.c.state == "leased")
            .values(values)
        )
        return self._write(lambda connection: connection.execute(statement).rowcount)

    def renew(self, task: Task) -> bool:
        """Begin the lease anew. False if the task is no longer this worker's."""
        values = {"lease_until": seconds_now() + self.lease_seconds}
        return self._write(partial(self._change, task=task, values=values))

    def forget(self, study_id: int) -> None:
        """Delete the tasks of a deleted study whose number a new study has now.

        Nothing is deleted if the new study is already complete: then another process has made it.
        """
        made = select(_ATTRIBUTES.c.study_id).where(
            _ATTRIBUTES.c.study_id == study_id, _ATTRIBUTES.c.key == _STUDY_KEY
        )
        statement = delete(TABLE).where(TABLE.c.study_id == study_id, not_(made.exists()))
        self._write(lambda connection: connection.execute(statement).rowcount)

    def unrecorded(self, study_id: int) -> list[tuple[Task, Mapping[str, Any], int | None]]:
        """Finished tasks that are not yet recorded in Optuna's study.

        Each comes with its facts and, if a trial was begun for it, Optuna's number of that trial in
        the database, else None.
        """
        query = (
            select(*_COLUMNS, false(), TABLE.c.facts, TABLE.c.trial_id)
            .where(self._is_unrecorded(study_id))
            .order_by(TABLE.c.number)
        )
        return [(Task(*row[:-2]), row[-2] or {}, row[-1]) for row in self._read(query)]

    def unrecorded_numbers(self, study_id: int) -> set[int]:
        """The numbers of the tasks that ``unrecorded`` returns."""
        query = select(TABLE.c.number).where(self._is_unrecorded(study_id))
        return {row.number for row in self._read(query)}

    def set_trial(self, task: Task, trial_id: int) -> bool:
        """Note which of Optuna's trials records a task. False if another trial does."""
        statement = (
            update(TABLE)
            .where(
                TABLE.c.task_id == task.task_id,
                or_(TABLE.c.trial_id.is_(None), TABLE.c.trial_id == trial_id),
            )
            .values(trial_id=trial_id)
        )
        return self._write(lambda connection: connection.execute(statement).rowcount == 1)

    def set_recorded(self, task: Task) -> None:
        """Note that the trial that records a task is finished."""
        statement = update(TABLE).where(TABLE.c.task_id == task.task_id).values(recorded=True)
        self._write(lambda connection: connection.execute(statement).rowcount)

    @staticmethod
    def _is_unrecorded(study_id: int) -> ColumnElement[bool]:
        return and_(TABLE.c.study_id == study_id, TABLE.c.recorded.is_(False), not_(_UNFINISHED))

    @property
    def _free(self) -> ColumnElement[bool]:
        """The condition for tasks that this worker may take.

        While the server was down, nobody could renew a lease. So after its restart no lease is over
        until a full lease length has passed.
        """
        is_over = and_(
            TABLE.c.lease_until < seconds_now(),
            seconds_started() + self.lease_seconds < seconds_now(),
        )
        lost_answer = TABLE.c.worker == self.worker
        return or_(
            TABLE.c.state == "queued",
            and_(TABLE.c.state == "leased", or_(lost_answer, is_over)),
        )

    def _take(self, connection: Connection, study_id: int) -> Task | None:
        first = (
            select(TABLE.c.task_id)
            .where(TABLE.c.study_id == study_id, self._free)
            .order_by(TABLE.c.number)
            .limit(1)
            .with_for_update(skip_locked=True)
            .scalar_subquery()
        )
        is_lost = and_(TABLE.c.state == "leased", TABLE.c.worker != self.worker)
        deaths = TABLE.c.deaths + case((is_lost, 1), else_=0)
        is_deadly = deaths >= DEATHS
        statement = (
            update(TABLE)
            .where(TABLE.c.task_id == first)
            .values(
                state=case((is_deadly, "invalid"), else_="leased"),
                fault=case((is_deadly, _DEADLY), else_=TABLE.c.fault),
                worker=self.worker,
                lease_until=seconds_now() + self.lease_seconds,
                deaths=deaths,
            )
            .returning(*_COLUMNS, true())
        )
        found = connection.execute(statement).one_or_none()
        return None if found is None else Task(*found)

    def _enqueue(self, connection: Connection, study_id: int, name: str, mask: str) -> Task:
        """Insert the task at the end; try again if somebody else took that place meanwhile."""
        there = select(*_COLUMNS, self._free).where(
            TABLE.c.study_id == study_id, TABLE.c.mask == mask
        )
        end = select(func.count()).where(TABLE.c.study_id == study_id)
        while (found := connection.execute(there).one_or_none()) is None:
            row = {
                "study_id": study_id,
                "number": connection.execute(end).scalar_one(),
                "mask": mask,
                "name": name,
                "state": "queued",
            }
            insert_if_absent(connection, TABLE, [row])
        return Task(*found)

    def _change(self, connection: Connection, task: Task, values: Mapping[str, Any]) -> bool:
        """Update a task that this worker holds. False if it is no longer this worker's."""
        statement = (
            update(TABLE)
            .where(
                TABLE.c.task_id == task.task_id,
                TABLE.c.worker == self.worker,
                TABLE.c.state == "leased",
            )
            .values(dict(values))
        )
        return connection.execute(statement).rowcount == 1

    def _read(self, query: Any) -> Sequence[Any]:
        def once() -> Sequence[Any]:
            with for_reading(self.engine).connect() as connection:
                return connection.execute(query).all()

        return self.patience(once)

    def _write(self, action: Callable[[Connection], T]) -> T:
        def once() -> T:
            with self.engine.begin() as connection:
                return action(connection)

        return self.patience(once)


def _one_more_death() -> dict[str, Any]:
    return {"deaths": TABLE.c.deaths + 1}
