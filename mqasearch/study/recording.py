"""Optuna's studies as the record: each finished task becomes a trial there.

Only Optuna's public calls are used. A trial is added as running, the task notes its number in the
database, and then the trial gets its end. So two processes that record the same task at once, or
one that dies in between, leave one finished trial: the task says which.

A worker records in a thread of its own, for adding a trial takes some hundred statements. One
process at a time records a study, because the database would make the others wait anyway.
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
from mqasearch.selectors import INVALID_KEY, MASK_KEY, mask_params, param_name, search_space
from mqasearch.study.selection import Selection, facts_of_file, open_selections

logger = logging.getLogger(__name__)

LEASE_SECONDS = 30.0
"""After which a process that died while it recorded a study is replaced."""

SHORTEST_WAIT, LONGEST_WAIT = 0.05, 1.0
"""Between two looks at what another process records."""

LOOK_SECONDS = 5.0
"""Between two looks for trials that somebody has enqueued in Optuna's study."""

_ENDS = {
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "invalid": TrialState.FAIL,
}


def bring_up(storage: SharedStorage, name: str) -> None:
    """Record what workers have finished, for somebody who is about to read the record.

    Args:
        storage: that may be written.
        name: of a study file, a comparison or one of its studies.

    Raises:
        StorageError: there is no such study.
        DatabaseAwayError: the database stayed away.
    """
    studies = facts_of_file(storage, name)
    if not Record(storage, open_selections(storage, studies)).catch_up(within=LEASE_SECONDS + 1):
        logger.warning("not all results of %s are recorded yet; run the same command again", name)


class Record:
    """The record of some studies.

    As a context manager it records in the background: :meth:`notify` says that there is something,
    and whatever is left is recorded when the block ends.

    Args:
        storage: of the studies.
        selections: whose studies they are.
        worker: a name that nobody else has; made up if not given.
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
        """The lease is this process's, and one of its threads has it."""
        self._wake = threading.Event()
        self._stop = False
        self._thread = threading.Thread(target=self._keep, name="record", daemon=True)
        self.fault: Exception | None = None
        """Why nothing is recorded any more."""

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
        elif isinstance(error, KeyboardInterrupt):  # whoever looks next sees what was done
            with suppress(DatabaseAwayError):
                self.catch_up(within=0)

    def notify(self) -> None:
        """Say that a task was finished.

        Raises:
            Exception: why earlier ones could not be recorded.
        """
        if self.fault is not None:
            raise self.fault
        self._wake.set()

    def catch_up(self, within: float | None = None) -> bool:
        """Record whatever is finished now, and take in what was enqueued in Optuna's studies.

        Args:
            within: seconds to wait for another process that is recording; None: as long as it
                takes.

        Returns:
            Whether all of it is recorded.

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
        # Others may finish more meanwhile, and record it. Trials without an end are looked for
        # last: reading trials costs more.
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
        """The numbers of tasks whose trial has no end."""
        return {trial.user_attrs[TASK_KEY] for trial in self._begun(study_id)}

    def take_in(self, selection: Selection) -> None:
        """Queue the masks of trials that somebody has enqueued in Optuna's study.

        Such a trial ends, failed, with the mask that it became; the task gets a trial of its own.
        If another process is writing the study, it does that too.
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
            if mask is None:  # written first: whoever repeats this makes the same task
                mask = str(selection.completed(_fixed_flags(trial, selection.facts.n_layers)))
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
            except DatabaseAwayError:  # the worker's own thread meets the same fault, and tells
                continue
            except Exception as error:
                self.fault = error
                break
        self._storage.remove_session()

    def _record(self, study_id: int, *, thoroughly: bool = False) -> bool:
        """Record what is finished. False if another process is at it."""
        with self._leased(study_id) as is_ours:
            if is_ours:
                self._storage.patience(partial(self._record_all, study_id, thoroughly))
        return is_ours

    @contextmanager
    def _leased(self, study_id: int) -> Iterator[bool]:
        """Whether this process is the one that writes the study, for the length of the block."""
        with self._writing:
            is_ours = self._claims.claim(_lease(study_id), LEASE_SECONDS)
            try:
                yield is_ours
            finally:
                if is_ours:
                    self._claims.release(_lease(study_id))

    def _record_all(self, study_id: int, thoroughly: bool) -> None:
        """May be repeated from the start, whatever part of it was done."""
        if not self._claims.claim(_lease(study_id), LEASE_SECONDS):
            return  # the first attempt took long; another process goes on
        if thoroughly:
            self._adopt(study_id)
        for task, facts, trial_id in self._queue.unrecorded(study_id):
            if trial_id is None:
                trial_id = self._storage.create_new_trial(study_id, _begun_trial(task, facts))
                if not self._queue.set_trial(task, trial_id):
                    self._end(trial_id, TrialState.FAIL)
                    continue
            if task.fault is not None:
                with suppress(UpdateFinishedTrialError):  # another process did it
                    self._storage.set_trial_user_attr(trial_id, INVALID_KEY, task.fault)
            self._end(trial_id, _ENDS[task.state], task.value)
            self._queue.set_recorded(task)
            if not self._claims.claim(_lease(study_id), LEASE_SECONDS):
                return  # this process was silent for too long; another one goes on

    def _adopt(self, study_id: int) -> None:
        """Trials that were begun and have no end: one for each task that has none is used, all
        others fail."""
        begun = self._begun(study_id)  # first: their tasks were finished before
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
    """Say so if the study was deleted."""
    try:
        yield
    except KeyError:
        selection.has_more()
        raise


def _begun_trial(task: Task, facts: Mapping[str, Any]) -> FrozenTrial:
    """The trial of a task, but for its end."""
    mask = LayerMask.parse(task.mask)
    user_attrs: dict[str, Any] = {TASK_KEY: task.number, MASK_KEY: task.mask}
    if task.name is not None:
        user_attrs[NAME_KEY] = task.name
    if facts:
        user_attrs[FACTS_KEY] = dict(facts)
    reported = {mask.n_converted: task.value} if task.state == "pruned" else {}
    trial = optuna.create_trial(
        state=TrialState.RUNNING,
        params=mask_params(mask),
        distributions=search_space(len(mask)),
        user_attrs=user_attrs,
        intermediate_values={step: value for step, value in reported.items() if value is not None},
    )
    trial.datetime_start = datetime.now() - timedelta(seconds=facts.get("seconds", 0.0))
    return trial


def _fixed_flags(trial: FrozenTrial, n_layers: int) -> dict[int, bool]:
    """The layers that a trial was enqueued with."""
    fixed = trial.system_attrs.get("fixed_params", {})
    names = {param_name(layer): layer for layer in range(n_layers)}
    return {names[name]: bool(value) for name, value in fixed.items() if name in names}
