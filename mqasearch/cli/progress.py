"""One line of progress on a terminal, one log line per trial elsewhere."""

import logging
import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bars

from mqasearch.record import TrialFacts, facts_of_trial
from mqasearch.statistics import Estimate
from mqasearch.study import FinishedTrial, Selection, best
from mqasearch.time_left import in_words
from mqasearch.worker import Watcher

log = logging.getLogger("mqasearch")


class Progress:
    """Selector, trial, best so far, difference to the original, time left.

    The time left is estimated from this process's own pace and from how many trials the selector is
    expected to need; a plan may turn out shorter or longer.
    """

    def __init__(self) -> None:
        self.watcher = Watcher(self._start, self._trial, self._confirm)
        self._scoring_seconds: list[float] = []
        self._started = time.monotonic()
        self._bars = Bars(
            TextColumn("{task.fields[selector]:<12}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
        self._task = self._bars.add_task("", selector="", note="loading the model", total=None)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def _start(self, selection: Selection) -> None:
        done = sum(task.is_scored for task in selection.tasks())
        self._bars.update(
            self._task,
            selector=selection.facts.selector,
            completed=done,
            total=max(selection.expected_trials(), done + 1),
        )

    def _trial(self, selection: Selection, trial: FinishedTrial | None) -> None:
        if trial is None:
            return  # it failed, as a log line says
        last = trial.facts
        if not last.reused:
            self._scoring_seconds.append(time.monotonic() - self._started)
        self._started = time.monotonic()
        rows = [task for task in selection.tasks() if task.is_scored]
        at_budget = (task for task in rows if task.state == "complete")
        chosen = best(at_budget, maximize=selection.facts.maximize)
        found = None if chosen is None else facts_of_trial(selection.queue.facts(chosen))
        shown = f"best {_value(found)}" if found else f"probe {_value(last)}"
        left = max(selection.expected_trials() - len(rows), 0)
        note = f"{shown}  {self._left(left)}"
        self._bars.update(self._task, completed=len(rows), note=note)
        if self._bars.disable:
            log.info(
                "%s trial %d: %s %s%s; %s",
                selection.study.study_name,
                trial.number,
                last.mask,
                _value(last),
                " known" if last.reused else f" in {last.seconds:.1f} s",
                note,
                extra={"study": selection.study.study_name, "trial": trial.number},
            )

    def _confirm(self, selection: Selection) -> None:
        self._bars.update(self._task, note="confirming on held-out documents")
        if self._bars.disable:
            study = selection.study.study_name
            log.info("%s: confirming on held-out documents", study, extra={"study": study})

    def _left(self, trials: int) -> str:
        if not self._scoring_seconds or not trials:
            return ""
        seconds = trials * sum(self._scoring_seconds) / len(self._scoring_seconds)
        return f"about {in_words(seconds)} left"


def _value(facts: TrialFacts) -> str:
    """``1.482 ± 0.031 (+0.0105 ± 0.0042)``: the value, and its difference to the original's.

    The difference is left out if it equals the value, as for a distance to the original.
    """
    value = Estimate(facts.value, facts.stderr)
    if facts.delta == facts.value:
        return str(value)
    return f"{value} ({Estimate(facts.delta, facts.delta_stderr).text(signed=True)})"
