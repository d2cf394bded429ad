"""The loop of one worker: it does the next task of any study that has one, until all are done."""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from mqasearch.errors import DatabaseAwayError
from mqasearch.evaluation import Evaluator
from mqasearch.forward import ran_out_of_memory
from mqasearch.interruption import interruptible, raise_postponed
from mqasearch.queue import Presence, Queue, Result, Task, kept
from mqasearch.record import facts_of_trial
from mqasearch.study import FinishedTrial, Outlook, Record, Selection, last_attempt, pause_before
from mqasearch.worker.trial import score_task

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2


@dataclass
class Worker:
    """Scores the masks of several studies; the next mask is from the first study that has one.

    Attributes:
        selections: the studies in the order of the study file.
        evaluator: scores the masks of all studies, so that they share scores.
        queue: the queue of the masks.
        record: records results in Optuna's studies.
        presence: this worker's row in the list of workers.
        on_trial: called after every trial with its selection and the finished trial; None instead
            of the trial if it has no score.
        on_start: called before every trial with its selection.
    """

    selections: Sequence[Selection]
    evaluator: Evaluator
    queue: Queue
    record: Record
    presence: Presence
    on_trial: Callable[[Selection, FinishedTrial | None], None] = lambda _, __: None
    on_start: Callable[[Selection], None] = lambda _: None
    n_done: int = field(default=0, init=False)
    _ended: set[int] = field(default_factory=set, init=False)
    """Optuna's numbers of the studies that had nothing left when this worker last looked."""

    def run(
        self,
        n_trials: int | None = None,
        timeout: float | None = None,
        idle_timeout: float | None = None,
    ) -> int:
        """Work until nothing is left, or until one of the limits is reached.

        Args:
            n_trials: the most trials that this worker runs.
            timeout: seconds after which no trial is started.
            idle_timeout: the most seconds of waiting for other workers' trials.

        Returns:
            The number of trials that this worker ran.

        Raises:
            StorageError: somebody has deleted a study.
            DatabaseAwayError: the database stayed away.
        """
        try:
            return self._run(n_trials, timeout, idle_timeout)
        except BaseException:
            with suppress(DatabaseAwayError):  # a task may be ours without our knowing
                self.queue.give_up_leases([self.queue.worker], died=False)
            raise

    def _run(self, n_trials: int | None, timeout: float | None, idle_timeout: float | None) -> int:
        started = busy = time.monotonic()
        while n_trials is None or self.n_done < n_trials:
            raise_postponed()
            now = time.monotonic()
            if timeout is not None and now - started >= timeout:
                break
            outlook = self._round()
            if outlook == Outlook.DONE:
                if self._is_more():
                    continue
                break
            if outlook == Outlook.READY:
                busy = time.monotonic()
            elif idle_timeout is not None and now - busy >= idle_timeout:
                break
            else:
                with interruptible():
                    time.sleep(POLL_SECONDS)
        return self.n_done

    def _round(self) -> Outlook:
        """Do one task of the first selection that has one. Returns READY if a task was done."""
        waiting = False
        for selection in self.selections:
            if selection.study_id in self._ended:
                continue
            found = self._next(selection)
            if isinstance(found, Task):
                self._run_trial(selection, found)
                return Outlook.READY
            waiting |= found == Outlook.WAIT
            if found == Outlook.DONE:
                self._ended.add(selection.study_id)
        return Outlook.WAIT if waiting else Outlook.DONE

    def _next(self, selection: Selection) -> Task | Outlook:
        """The task of a study that this worker does next; WAIT or DONE if there is none now."""
        while (look := selection.look()).outlook == Outlook.READY:
            if not look.wanted:  # a task is free, unless another worker takes it first
                return selection.take() or Outlook.WAIT
            task = selection.add(look, self.evaluator.cheapest(look.wanted))
            if task is not None:
                return task
        return look.outlook

    def _is_more(self) -> bool:
        """Whether somebody has added or enqueued trials since the studies ended."""
        self._ended.clear()
        added = [selection.has_more() for selection in self.selections]
        for selection in self.selections:
            self.record.take_in(selection)
        return any(added) or any(s.outlook() != Outlook.DONE for s in self.selections)

    def _run_trial(self, selection: Selection, task: Task) -> None:
        self.on_start(selection)
        self.presence.start_trial(selection.study.study_name, task.number)
        done = False
        try:
            with kept(self.queue, task):
                result = self._result(selection, task)
            done = result is not None and self._finish(selection, task, result)
        finally:
            self.presence.end_trial(done=done)
        self.n_done += 1
        found = facts_of_trial(result.facts) if done and result is not None else None
        scored = None if found is None else FinishedTrial(task.number, found, task.order)
        self.on_trial(selection, scored)

    def _result(self, selection: Selection, task: Task) -> Result | None:
        """The task's result; None if it was given back because it ran out of memory."""
        try:
            pause_before(task)
            result = score_task(selection, self.evaluator, task)
        except KeyboardInterrupt:
            self.queue.give_back(task)
            raise
        except Exception as error:
            if not ran_out_of_memory(error):
                with suppress(DatabaseAwayError):
                    self.queue.give_back(task, died=not isinstance(error, DatabaseAwayError))
                raise
            _warn(selection, task, str(error))
            last = last_attempt(task)
            if last is None:
                self.queue.give_back(task, out_of_memory=True)
            return last
        if result.fault is not None:
            _warn(selection, task, result.fault)
        return result

    def _finish(self, selection: Selection, task: Task, result: Result) -> bool:
        if self.queue.finish(task, result):
            self.record.notify()
            return True
        log.warning(
            "this worker was silent for too long: %s trial %d is another worker's",
            selection.study.study_name,
            task.number,
        )
        return False


def _warn(selection: Selection, task: Task, fault: str) -> None:
    where = {"study": selection.study.study_name, "trial": task.number}
    log.warning("%s trial %d failed: %s", *where.values(), fault, extra=where)
