"""Records finished tasks in Optuna's studies: each becomes a trial there.

Only Optuna's public calls are used. A trial is added as running, its number is written to the task,
and then the trial is ended. So there is one finished trial, the one whose number the task has, even
if two processes record the same task at once, or if one of them dies in between.

A worker records in a separate thread, because adding a trial takes some hundred statements. Only
one process at a time records a study, because the database would make the others wait anyway.
"""

import logging
import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from functools import partial
from types import TracebackType
from typing import Any, Self

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from mqasearch.errors import DatabaseAwayError
from mqasearch.interruption import interruptible, undisturbed
from mqasearch.mask import LayerMask
from mqasearch.queue import Queue, Task
from mqasearch.record import FACTS_KEY, NAME_KEY, QUEUED_KEY, TASK_KEY, SharedStorage
from mqasearch.scores import Claims, ScoreStore
from mqasearch.search_space import SearchSpace
from mqasearch.selectors import INVALID_KEY, MASK_KEY, distributions, levels_of, mask_params
from mqasearch.study.selection import Selection, facts_of_file, open_selections

logger = logging.getLogger(__name__)

LEASE_SECONDS = 30.0
"""Length of the lease on a study's record; if its process dies, another one then takes over."""

SHORTEST_WAIT, LONGEST_WAIT = 0.05, 1.0
"""Seconds between two looks at what another process has recorded."""

LOOK_SECONDS = 5.0
"""Seconds between two looks for trials that somebody has enqueued in Optuna's study."""

_ENDS = {
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "invalid": TrialState.FAIL,
}


def bring_up(storage: SharedStorage, name: str) -> None:
    """Record what workers have finished, before somebody reads the record.

    Args:
        storage: an open storage, not read-only.
        name: name of a study file, a comparison or one of its studies.

    Raises:
        StorageError: there is no such study.
        DatabaseAwayError: the database stayed away.
    """
    studies = facts_of_file(storage, name)
    if not Record(storage, open_selections(storage, studies)).catch_up(within=LEASE_SECONDS + 1):
        logger.warning("not all results of %s are recorded yet; run the same command again", name)


class Record:
    """The record of some studies.

    As a context manager it records in the background: :meth:`notify` says that a task was finished,
    and all that is left is recorded when the block ends.

    Args:
        storage: the storage of the studies.
        selections: the studies with their selectors.
        worker: a name that no other process has; made up if not given.
    """

    def __init__(
        self, storage: SharedStorage, selections: Sequence[Selection], worker: str | None = None
    ) -> None:
        self._storage = storage
        self._selections = selections
        self._queue = Queue(storage.engine, storage.patience)
        store = ScoreStore(storage.engine, storage.patience)
        self._claims = Claims(storage.engine, store, storage.patience, worker=worker)
        self._writing = threading.Lock()
        """A lease belongs to this process; this lock gives it to one thread at a time."""
        self._wake = threading.Event()
        self._stop = False
        self._thread = threading.Thread(target=self._keep, name="record", daemon=True)
        self.fault: Exception | None = None
        """Why recording in the background has stopped; None while it works."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop = True
        self._wake.set()
        self._thread.join()
        if error is None:
            self.catch_up()
        elif isinstance(error, KeyboardInterrupt):  # so that the next reader sees what was done
            with suppress(DatabaseAwayError):
                self.catch_up(within=0)

    def notify(self) -> None:
        """Tell the background thread that a task was finished.

        Raises:
            Exception: the error that has stopped the recording in the background.
        """
        if self.fault is not None:
            raise self.fault
        self._wake.set()

    def catch_up(self, within: float | None = None) -> bool:
        """Record all tasks that are finished now, and queue trials enqueued in Optuna's studies.

        Args:
            within: seconds to wait for another process that is recording; None = without limit.

        Returns:
            Whether all of these tasks are recorded.

        Raises:
            StorageError: somebody has deleted a study.
            DatabaseAwayError: the database stayed away.
        """
        deadline = math.inf if within is None else time.monotonic() + within
        is_complete = True
        with undisturbed():
            for selection in self._selections:
                with _of(selection):
                    self.take_in(selection)
                    is_complete &= self._catch_up(selection.study_id, deadline)
        return is_complete

    def _catch_up(self, study_id: int, deadline: float) -> bool:
        # Only tasks that were due at the start count: other workers record what they finish
        # meanwhile. Trials without an end come last, because reading trials costs more.
        for missing in (self._queue.unrecorded_numbers, self._begun_numbers):
            due, pause = missing(study_id), SHORTEST_WAIT
            while due & missing(study_id):
                if self._record(study_id, thoroughly=True):
                    continue
                if time.monotonic() >= deadline:
                    return False
                with interruptible():
                    time.sleep(pause)
                pause = min(2 * pause, LONGEST_WAIT)
        return True

    def _begun_numbers(self, study_id: int) -> set[int]:
        """The numbers of tasks whose trial has not ended."""
        return {trial.user_attrs[TASK_KEY] for trial in self._begun(study_id)}

    def take_in(self, selection: Selection) -> None:
        """Queue the masks of trials that somebody has enqueued in Optuna's study.

        The mask is written to such a trial, which then ends as failed; its task gets another trial.
        If another process is recording the study, this is left to that process.
        """
        study_id = selection.study_id
        if not self._in_state(study_id, TrialState.WAITING):
            return
        with self._leased(study_id) as is_ours:
            # Read again: another worker may have had the lease meanwhile.
            for trial in self._in_state(study_id, TrialState.WAITING) if is_ours else ():
                self._queue_enqueued(selection, trial)

    def _queue_enqueued(self, selection: Selection, trial: FrozenTrial) -> None:
        trial_id = self._trial_id(selection.study_id, trial)
        with suppress(UpdateFinishedTrialError):  # somebody ran it
            mask = trial.user_attrs.get(QUEUED_KEY)
            if mask is None:  # written first, so that a repetition makes the same task
                mask = str(selection.completed(_fixed(trial, selection.space)))
                self._storage.set_trial_user_attr(trial_id, QUEUED_KEY, mask)
            name = str(trial.user_attrs.get(NAME_KEY, f"trial {trial.number}"))
            self._queue.enqueue(selection.study_id, name, mask)
            self._storage.set_trial_state_values(trial_id, TrialState.FAIL)

    def _keep(self) -> None:
        looked = time.monotonic()
        while not self._stop:
            self._wake.wait(LOOK_SECONDS)
            self._wake.clear()
            try:
                for selection in self._selections:
                    if self._queue.unrecorded_numbers(selection.study_id):
                        with _of(selection):
                            self._record(selection.study_id)
                if time.monotonic() - looked >= LOOK_SECONDS:
                    looked = time.monotonic()
                    for selection in self._selections:
                        with _of(selection):
                            self.take_in(selection)
            except DatabaseAwayError:  # the worker's main thread meets and reports the same fault
                continue
            except Exception as error:
                self.fault = error
                break
        self._storage.remove_session()

    def _record(self, study_id: int, *, thoroughly: bool = False) -> bool:
        """Record what is finished. False if another process is recording the study."""
        with self._leased(study_id) as is_ours:
            if is_ours:
                self._storage.patience(partial(self._record_all, study_id, thoroughly))
        return is_ours

    @contextmanager
    def _leased(self, study_id: int) -> Iterator[bool]:
        """Try to get the lease on the study's record for the length of the block.

        Yields:
            Whether this process has the lease.
        """
        with self._writing:
            is_ours = self._claims.claim(_lease(study_id), LEASE_SECONDS)
            try:
                yield is_ours
            finally:
                if is_ours:
                    self._claims.release(_lease(study_id))

    def _record_all(self, study_id: int, thoroughly: bool) -> None:
        """Record all finished tasks; this may be repeated from the start at any time."""
        if not self._claims.claim(_lease(study_id), LEASE_SECONDS):
            return  # an earlier attempt took too long; another process has the lease now
        if thoroughly:
            self._adopt(study_id)
        for task, facts, trial_id in self._queue.unrecorded(study_id):
            if trial_id is None:
                trial_id = self._storage.create_new_trial(
                    study_id, _begun_trial(task, facts, self._space(study_id))
                )
                if not self._queue.set_trial(task, trial_id):
                    self._end(trial_id, TrialState.FAIL)
                    continue
            if task.fault is not None:
                with suppress(UpdateFinishedTrialError):  # another process did it
                    self._storage.set_trial_user_attr(trial_id, INVALID_KEY, task.fault)
            self._end(trial_id, _ENDS[task.state], task.value)
            self._queue.set_recorded(task)
            if not self._claims.claim(_lease(study_id), LEASE_SECONDS):
                return  # this process was silent for too long; another one has the lease now

    def _space(self, study_id: int) -> SearchSpace:
        return next(each.space for each in self._selections if each.study_id == study_id)

    def _adopt(self, study_id: int) -> None:
        """Adopt trials that were begun and have not ended.

        A task without a trial gets one of its trials; all other such trials fail.
        """
        begun = self._begun(study_id)  # read first, so that their tasks are certainly finished
        missing = {task.number: task for task, *_ in self._queue.unrecorded(study_id)}
        for trial in begun:
            trial_id = self._trial_id(study_id, trial)
            task = missing.get(trial.user_attrs[TASK_KEY])
            if task is None or not self._queue.set_trial(task, trial_id):
                self._end(trial_id, TrialState.FAIL)

    def _begun(self, study_id: int) -> list[FrozenTrial]:
        running = self._in_state(study_id, TrialState.RUNNING)
        return [trial for trial in running if TASK_KEY in trial.user_attrs]

    def _in_state(self, study_id: int, state: TrialState) -> list[FrozenTrial]:
        return self._storage.get_all_trials(study_id, deepcopy=False, states=(state,))

    def _trial_id(self, study_id: int, trial: FrozenTrial) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(study_id, trial.number)

    def _end(self, trial_id: int, state: TrialState, value: float | None = None) -> None:
        with suppress(UpdateFinishedTrialError):  # another process did it
            values = None if value is None else [value]
            self._storage.set_trial_state_values(trial_id, state, values)


def _lease(study_id: int) -> str:
    return f"record of study {study_id}"


@contextmanager
def _of(selection: Selection) -> Iterator[None]:
    """Raise StorageError if a call in the block fails because the study was deleted."""
    try:
        yield
    except KeyError:
        selection.has_more()
        raise


def _begun_trial(task: Task, facts: Mapping[str, Any], space: SearchSpace) -> FrozenTrial:
    """A running trial for a task, which is ended later."""
    mask = LayerMask.parse(task.mask)
    user_attrs: dict[str, Any] = {TASK_KEY: task.number, MASK_KEY: task.mask}
    if task.name is not None:
        user_attrs[NAME_KEY] = task.name
    if facts:
        user_attrs[FACTS_KEY] = dict(facts)
    reported = {space.saved(mask): task.value} if task.state == "pruned" else {}
    trial = optuna.create_trial(
        state=TrialState.RUNNING,
        params=mask_params(mask, space),
        distributions=distributions(space),
        user_attrs=user_attrs,
        intermediate_values={step: value for step, value in reported.items() if value is not None},
    )
    trial.datetime_start = datetime.now() - timedelta(seconds=facts.get("seconds", 0.0))
    return trial


def _fixed(trial: FrozenTrial, space: SearchSpace) -> dict[int, int]:
    """Layer → level, for the layers that the trial was enqueued with."""
    return levels_of(trial.system_attrs.get("fixed_params", {}), space)
