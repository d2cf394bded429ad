"""What the figures and pages show, as plain data."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from scipy.stats import t

from mqasearch.dashboard.confirmed import Confirmed, by_task
from mqasearch.mask import LayerMask
from mqasearch.record import ENQUEUED
from mqasearch.search_space import SearchSpace
from mqasearch.statistics import Estimate
from mqasearch.study import HeldOut, Part, best, held_out, improvements

State = Literal["waiting", "running", "complete", "pruned", "invalid", "failed"]
"""``pruned``: a probe (a mask below the budget that was scored) or a mask that was given up in a
race. ``invalid``: a mask without a finite score."""


@dataclass(frozen=True, slots=True)
class TrialRow:
    """One trial.

    Attributes:
        number: the trial's number in its study; a mask without one so far comes after all trials.
        mask: a row of digits, one level per layer, layer 0 first.
        n_converted: number of converted layers.
        value: the objective's value; None while unknown.
        state: see ``State``.
        delta: value − the original model's value.
        selector: the selector that proposed the mask.
        evaluations: masks that the selector had scored when this trial ended, this one included,
            whether the score was computed or found in the database; None before the end.
        kv_bytes: bytes of KV cache that a token takes.
        seconds: seconds that scoring took.
        reused: whether the score was found in the database.
        label: the name that the study file gives to an enqueued mask.
        given_up: documents after which the mask was clearly worse than another one of its size, so
            that ``value`` is an estimate; None if all were scored.
        stderr: standard error of ``value``; None if it is unknown.
        delta_stderr: standard error of ``delta``, paired by document; None if it is unknown.
        n_docs: number of documents of each task; empty if it is unknown.
        order: place in the order in which the study's masks were proposed.
        words: the converted layers, with their numbers of KV heads if there are several.
    """

    number: int
    mask: str
    n_converted: int
    value: float | None
    state: State
    delta: float | None
    selector: str
    evaluations: int | None
    kv_bytes: int | None = None
    seconds: float | None = None
    reused: bool = False
    label: str = ""
    given_up: int | None = None
    stderr: float | None = None
    delta_stderr: float | None = None
    n_docs: tuple[int, ...] = ()
    order: int = 0
    words: str = ""

    @property
    def layers(self) -> tuple[int, ...]:
        """The converted layers, ascending, 0-based."""
        return LayerMask.parse(self.mask).layers

    @property
    def delta_margin(self) -> float | None:
        """Half the 95 % interval of ``delta``: Student's t, of the task with fewest documents."""
        if self.delta_stderr is None or not self.n_docs or min(self.n_docs) < 2:
            return None
        return float(t.ppf(0.975, min(self.n_docs) - 1)) * self.delta_stderr

    @property
    def estimate(self) -> Estimate | None:
        """The value with its standard error."""
        return None if self.value is None else Estimate(self.value, self.stderr)


@dataclass(frozen=True, slots=True)
class StudyRows:
    """One selector's study.

    Attributes:
        study_id: Optuna's number of the study, for links to Optuna's own dashboard.
        name: name of the Optuna study, ``<comparison>.<selector>``.
        comparison: the comparison that the study belongs to.
        selector: the selector that proposes its masks.
        space: the masks that the study may hold, and its budget.
        numbers: the numbers of KV heads that a converted layer may have.
        budget: the budget in words.
        maximize: whether a larger value is better.
        metric: what the value is, for axis titles.
        group: a key that is equal for comparisons that differ only in name and budget.
        n_trials: largest number of trials; None if the selector's plan ends by itself.
        parts: parts of the objective; empty if the study file does not say.
        confirmed: held-out results; empty before the search has ended.
        trials: in the order of their numbers.
    """

    study_id: int
    name: str
    comparison: str
    selector: str
    space: SearchSpace
    numbers: tuple[int, ...]
    budget: str
    maximize: bool
    metric: str
    group: str
    n_trials: int | None
    parts: tuple[Part, ...]
    confirmed: tuple[Confirmed, ...]
    trials: tuple[TrialRow, ...]

    def loss(self, row: TrialRow) -> float:
        """The value with its sign turned so that lower is better; infinite while unknown."""
        if row.value is None:
            return math.inf
        return -row.value if self.maximize else row.value

    def is_at_budget(self, row: TrialRow) -> bool:
        """Whether the row's mask saves what the budget asks for, and no more than it must."""
        return self.space.is_at_budget(LayerMask.parse(row.mask))

    @property
    def n_layers(self) -> int:
        """The number of the model's layers."""
        return self.space.n_layers

    @property
    def has_levels(self) -> bool:
        """Whether a layer may have one of several smaller numbers of KV heads."""
        return self.space.n_levels > 1

    @property
    def at_budget(self) -> tuple[TrialRow, ...]:
        """The rows of ``scored`` whose masks are at the budget."""
        return tuple(row for row in self.scored if self.is_at_budget(row))

    @property
    def scored(self) -> tuple[TrialRow, ...]:
        """The rows that have a value, in the order in which they ended."""
        rows = [row for row in self.trials if row.value is not None and row.evaluations]
        return tuple(sorted(rows, key=lambda row: row.evaluations or 0))

    @property
    def original(self) -> TrialRow | None:
        """The unconverted model's row."""
        return next((row for row in self.scored if row.n_converted == 0), None)

    @property
    def best(self) -> TrialRow | None:
        """The best mask at the budget."""
        return best(self.at_budget, maximize=self.maximize)

    @property
    def best_confirmed(self) -> tuple[Confirmed, ...]:
        """The held-out results of the mask that is best now."""
        return self._of_best(is_healed=False)

    @property
    def best_healed(self) -> tuple[Confirmed, ...]:
        """The held-out results of the same mask after healing."""
        return self._of_best(is_healed=True)

    def _of_best(self, *, is_healed: bool) -> tuple[Confirmed, ...]:
        chosen = self.best
        return tuple(
            row
            for row in self.confirmed
            if chosen and row.mask == chosen.mask and row.is_healed == is_healed
        )

    @property
    def held_out(self) -> HeldOut | None:
        """The objective of the best mask on documents that the search never saw."""
        return held_out(self.parts, by_task(self.best_confirmed))

    @property
    def healed_held_out(self) -> HeldOut | None:
        """The objective of the healed best mask on documents that the search never saw."""
        return held_out(self.parts, by_task(self.best_healed))

    @property
    def improvements(self) -> list[TrialRow]:
        """The masks at the budget that were the best when they were scored."""
        return improvements(self.at_budget, maximize=self.maximize)


@dataclass(frozen=True, slots=True)
class Comparison:
    """The selectors of one study file at one budget, side by side."""

    name: str
    studies: tuple[StudyRows, ...]

    @property
    def selectors(self) -> tuple[StudyRows, ...]:
        """The studies without the one of enqueued masks, unless there is no other."""
        chosen = tuple(study for study in self.studies if study.selector != ENQUEUED)
        return chosen or self.studies

    @property
    def best(self) -> tuple[StudyRows, TrialRow] | None:
        """The best mask at the budget over all selectors, with its study."""
        bests = [(study, row) for study in self.selectors if (row := study.best) is not None]
        chosen = best((row for _, row in bests), maximize=self.studies[0].maximize)
        return next((pair for pair in bests if pair[1] is chosen), None)


def siblings(comparison: Comparison, all_of_them: Iterable[Comparison]) -> tuple[Comparison, ...]:
    """Comparisons that differ from this one in the budget alone, itself included."""
    group = comparison.studies[0].group
    return tuple(other for other in all_of_them if other.studies[0].group == group)
