"""Healing as the command line shows it: progress on stderr, held-out results on stdout."""

import logging
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from mqasearch.checkpoint import Confirmation
from mqasearch.cli.options import Format
from mqasearch.cli.printed_tables import NONE, print_rows
from mqasearch.healing import Step
from mqasearch.statistics import Estimate
from mqasearch.time_left import in_words

log = logging.getLogger("mqasearch")

_LINES = 20
"""Log lines of a whole healing if there is no terminal."""


class HealingBar:
    """Steps, loss and time left: a bar on a terminal, some log lines elsewhere."""

    def __init__(self) -> None:
        self._bar = Progress(
            TextColumn("healing"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
        self._task = self._bar.add_task("", total=None, note="", visible=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def before(self, other: Callable[[int, int], None]) -> Callable[[int, int], None]:
        """Wrap ``other`` so that it takes over the terminal at its first call."""

        def show(done: int, total: int) -> None:
            self._bar.stop()
            other(done, total)

        return show

    def show(self, step: Step) -> None:
        """Called after every step."""
        self._bar.start()
        note = (
            f"KL {step.loss:.3f}, held out {step.held_out:.3f}, {step.seconds:.2g} s a step, "
            f"{in_words(step.seconds_left)} left"
        )
        self._bar.update(
            self._task, completed=step.step, total=step.n_steps, note=note, visible=True
        )
        if self._bar.disable and (
            step.step == step.n_steps or step.step % max(1, step.n_steps // _LINES) == 0
        ):
            log.info("healing, step %d of %d: %s", step.step, step.n_steps, note)


def print_confirmation(confirmation: Confirmation) -> None:
    """One table: a row per task and metric."""
    is_healed = confirmation.unhealed is not None
    rows = []
    for task, metrics in confirmation.converted.items():
        for metric, row in metrics.items():
            cells = [task, metric, row["n_docs"], Estimate(row["original"], row["original_stderr"])]
            if confirmation.unhealed is not None and confirmation.gained is not None:
                cells += _against(confirmation.unhealed[task][metric])
                cells += _against(row)
                cells.append(_difference(confirmation.gained[task][metric]))
            else:
                cells += _against(row)
            rows.append(cells)
    headers = ["task", "metric", "documents", "original", "mask", "Δ original [95 % CI]"]
    if is_healed:
        headers += ["healed", "Δ original [95 % CI] ", "Δ mask [95 % CI]"]
    print_rows(headers, rows, Format.TABLE)


def _against(row: dict[str, Any]) -> list[Any]:
    return [Estimate(row["value"], row["stderr"]), _difference(row)]


def _difference(row: dict[str, Any]) -> str:
    if "delta" not in row:
        return NONE
    low, high = row["delta"]["ci95"]
    return f"{row['delta']['value']:+.4f} [{low:+.4f}, {high:+.4f}]"
