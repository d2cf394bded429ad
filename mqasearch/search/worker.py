"""The loop of one worker: take the next trial of any study that is ready, until all are done."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from mqasearch.errors import DatabaseAwayError, ScoreError
from mqasearch.evaluation.memory import ran_out_of_memory
from mqasearch.interruption import interruptible, raise_postponed
from mqasearch.search.claims_turn import Turn
from mqasearch.search.evaluator import Evaluator
from mqasearch.search.objective import Objective
from mqasearch.search.out_of_memory import OutOfMemoryTrial, note_out_of_memory, pause_before
from mqasearch.search.roster import Presence
from mqasearch.search.selection import Outlook, Selection, fail_stale_trials
from mqasearch.search.storage_optuna import TrialTaken
from mqasearch.search.storage_stale import GIVEN_BACK_KEY

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2


@dataclass
class Worker:
    """Scores trials of several studies, the first ready one first.

    A trial is started in this worker's turn, so that a study of n trials ends with n however many
    workers see the last one missing.

    Attributes:
        selections: in the order of the study file.
        evaluator: shared by all of them, so that they share scores.
        turn_in: makes this worker's turn in a study.
        presence: this worker's line in the list of workers.
        on_trial: called after every trial with its selection and its number.
        on_start: called before every trial with its selection.
    """

    selections: Sequence[Selection]
    evaluator: Evaluator
    turn_in: Callable[[optuna.Study], Turn]
    presence: Presence
    on_trial: Callable[[Selection, int], None] = lambda _, __: None
    on_start: Callable[[Selection], None] = lambda _: None
    n_done: int = field(default=0, init=False)
    _latest: Selection | None = field(default=None, init=False)
    """Whose trial was run last, which probably has another one."""

    def run(
        self,
        n_trials: int | None = None,
        timeout: float | None = None,
        idle_timeout: float | None = None,
    ) -> int:
        """Work until nothing is left, or until one of the limits.

        Args:
            n_trials: that this worker runs.
            timeout: seconds after which no trial is started.
            idle_timeout: seconds of waiting for other workers' trials.

        Returns:
            The number of trials this worker ran.
        """
        started = busy = time.monotonic()
        while n_trials is None or self.n_done < n_trials:
            raise_postponed()
            now = time.monotonic()
            for selection in self.selections:  # while all wait for a worker that died, nobody asks
                fail_stale_trials(selection.study)
            if timeout is not None and now - started >= timeout:
                break
            outlook = self._round()
            if outlook == Outlook.DONE:
                if any([selection.has_more() for selection in self.selections]):
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
        """Run one trial of the first selection that has one. READY if a trial was run."""
        waiting = False
        for selection in self.selections:
            outlook = self._step(selection)
            if outlook == Outlook.READY:
                return Outlook.READY
            waiting |= outlook == Outlook.WAIT
        return Outlook.WAIT if waiting else Outlook.DONE

    def _step(self, selection: Selection) -> Outlook:
        if selection is not self._latest:
            outlook = selection.outlook()
            if outlook != Outlook.READY:
                return outlook
        with self.turn_in(selection.study) as turn:
            look = selection.look()  # somebody may have started a trial before our turn
            self._latest = selection if look.outlook == Outlook.READY else None
            if look.outlook == Outlook.READY:
                with turn.starting(look.newest):
                    return self._run_trial(selection, turn)
            return look.outlook

    def _run_trial(self, selection: Selection, turn: Turn) -> Outlook:
        """READY, or WAIT where somebody else has started one first."""
        self.on_start(selection)
        study = selection.study
        running: list[optuna.Trial] = []
        faults: list[Exception] = []

        def on_mask() -> None:
            turn.end()
            pause_before(running[0])

        objective = Objective(selection.facts, self.evaluator, on_mask, selection.certain)

        def tracked(trial: optuna.Trial) -> float:
            running.append(trial)
            self.presence.start_trial(study.study_name, trial.number)
            try:
                return objective(trial)
            except (optuna.TrialPruned, UpdateFinishedTrialError):
                raise
            except ScoreError as error:
                _warn(trial, error)
                raise
            except KeyboardInterrupt:  # as it fails, its mask is queued again
                trial.set_user_attr(GIVEN_BACK_KEY, True)
                raise
            except Exception as error:
                if ran_out_of_memory(error):
                    note_out_of_memory(trial)
                    _warn(trial, error)
                    raise OutOfMemoryTrial from error
                faults.append(error)
                raise

        done = False
        try:
            study.optimize(tracked, n_trials=1, catch=(ScoreError, OutOfMemoryTrial))
            done = True
        except UnboundLocalError as error:
            # Optuna's own, when the database is away for good at the end of a trial.
            raise _outage(error) or error from None
        except TrialTaken:  # the database was away in our turn, which another worker had meanwhile
            return Outlook.WAIT
        except KeyError:
            selection.look()  # StorageError where somebody has deleted the study
            raise
        except (AssertionError, ValueError, UpdateFinishedTrialError) as error:
            if faults or not running or not _was_given_away(study, running[0]):
                raise
            log.warning("this worker was silent for too long, its trial is another's: %s", error)
        finally:
            self.presence.end_trial(done=done)
        self.n_done += 1
        self.on_trial(selection, running[0].number)
        return Outlook.READY


def _warn(trial: optuna.Trial, error: Exception) -> None:
    where = {"study": trial.study.study_name, "trial": trial.number}
    log.warning("%s trial %d failed: %s", *where.values(), error, extra=where)


def _was_given_away(study: optuna.Study, trial: optuna.Trial) -> bool:
    """Whether somebody failed the trial meanwhile, as Optuna does after the grace period."""
    return study.get_trials(deepcopy=False)[trial.number].state == TrialState.FAIL


def _outage(error: BaseException) -> DatabaseAwayError | None:
    """That which led to ``error``."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, DatabaseAwayError):
        cause = cause.__context__
    return cause
