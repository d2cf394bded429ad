"""Workers simulated in one process, their trials finishing in random order."""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from hypothesis import strategies as st

from mqasearch.mask import LayerMask, ModelShape
from mqasearch.search_space import SearchSpace, heads_space
from mqasearch.selectors import History, MaskTrial, Selector, Wants

Loss = Callable[[LayerMask], float]
Make = Callable[[], Selector]


def additive_loss(n_layers: int, seed: int, n_levels: int = 1) -> Loss:
    """Every layer has a harm of its own, and the harms add up."""
    return pairwise_loss(n_layers, seed, 0.0, n_levels)


def pairwise_loss(n_layers: int, seed: int, strength: float = 0.7, n_levels: int = 1) -> Loss:
    """Layers interact in pairs, for better or worse; harms grow with the level, ever faster."""
    rng = np.random.default_rng(seed)
    harm = rng.lognormal(size=n_layers)
    scale = strength * np.sqrt(np.outer(harm, harm))
    pairs = np.triu(rng.normal(size=(n_layers, n_layers)) * scale, 1)

    def loss(mask: LayerMask) -> float:
        depths = (np.array(mask.levels, dtype=float) / n_levels) ** 2
        return float(1 + depths @ harm + depths @ pairs @ depths)

    return loss


def all_masks(n_layers: int, n_converted: int) -> list[LayerMask]:
    """Every mask with exactly ``n_converted`` layers."""
    layers = itertools.combinations(range(n_layers), n_converted)
    return [LayerMask.of(chosen, n_layers) for chosen in layers]


def spaces(draw: st.DrawFn, most: int) -> SearchSpace:
    """A search space of one or several levels and at most ``most`` layers, fewer with levels."""
    n_kv_heads, *numbers = draw(st.sampled_from([(2, 1), (4, 2, 1), (9, 3, 1), (8, 4, 2, 1)]))
    n_layers = draw(st.integers(1, most if len(numbers) == 1 else most // len(numbers)))
    shape = ModelShape(n_layers, n_kv_heads, n_kv_heads, 8, 8 * n_kv_heads, 2)
    space = heads_space(shape, numbers, least_heads=1)
    return space.with_least(draw(st.integers(1, space.most)))


def masks_within(space: SearchSpace) -> list[LayerMask]:
    """Every mask at the budget or below it, by brute force."""
    levels = range(space.n_levels + 1)
    every = (LayerMask(row) for row in itertools.product(levels, repeat=space.n_layers))
    return [mask for mask in every if space.size(mask) <= space.least]


@dataclass
class Simulation:
    """A simulation of some workers on one study.

    Attributes:
        make: makes a fresh selector; every worker makes its own.
        loss: the loss of a mask.
        n_workers: number of workers at once.
        seed: seed of the order in which workers start and finish trials.
        kill: probability that a trial's worker dies before it is finished.
        invalid: masks whose score is not a number.
        enqueued: masks that are scored first.
        pick: index of the mask that a worker takes among equally wanted ones.
        masks: all masks that were started, in order.
        answers: what the selectors wanted, with the history that they were shown.
    """

    make: Make
    loss: Loss
    n_workers: int = 1
    seed: int = 0
    kill: float = 0.0
    invalid: Iterable[LayerMask] = ()
    enqueued: Sequence[LayerMask] = ()
    pick: int = 0
    masks: list[LayerMask] = field(default_factory=list)
    answers: list[tuple[History, Wants]] = field(default_factory=list)
    _trials: dict[int, MaskTrial] = field(default_factory=dict)
    """Number → trial, without trials whose worker died."""

    def run(self, n_trials: int | None = None) -> "Simulation":
        """Run until every worker is told that all is done, or until ``n_trials`` were started."""
        rng = np.random.default_rng(self.seed)
        waiting = list(self.enqueued)
        idle = [self.make() for _ in range(self.n_workers)]
        running: list[tuple[Selector, MaskTrial]] = []
        while idle or running:
            worker = idle.pop(rng.integers(len(idle))) if idle and rng.random() < 0.6 else None
            if worker is not None:
                chosen = waiting.pop(0) if waiting else self._chosen(worker, n_trials)
                if chosen == "done":
                    continue
                if isinstance(chosen, LayerMask):
                    running.append((worker, self._start(chosen)))
                    continue
                idle.append(worker)
                assert running, "a worker waits for nobody"
            if running:
                owner, trial = running.pop(rng.integers(len(running)))
                self._finish(owner, trial, killed=rng.random() < self.kill)
                idle.append(owner)
        return self

    @property
    def history(self) -> History:
        """What is known now, the enqueued masks included."""
        waiting = self.enqueued[len(self.masks) :]
        queued = [
            MaskTrial(len(self.masks) + place, mask, "running", math.nan)
            for place, mask in enumerate(waiting)
        ]
        known = [self._trials[number] for number in sorted(self._trials)]
        return History([*known, *queued], max(len(self.masks), len(self.enqueued)))

    @property
    def best(self) -> LayerMask:
        return min(self._complete, key=lambda trial: trial.loss).mask

    @property
    def at_budget(self) -> set[LayerMask]:
        return {trial.mask for trial in self._complete}

    @property
    def _complete(self) -> list[MaskTrial]:
        return [trial for trial in self.history if trial.state == "complete"]

    def _chosen(self, worker: Selector, n_trials: int | None) -> LayerMask | str:
        """The worker's next mask, or ``wait`` or ``done``."""
        if n_trials is not None and len(self.masks) >= n_trials:
            return "done"
        history = self.history
        wants = worker.wants(history)
        self.answers.append((history, wants))
        if wants.masks:
            return wants.masks[self.pick]
        if n_trials is not None:
            return worker.spare(history)
        return "done" if wants.done else "wait"

    def _start(self, mask: LayerMask) -> MaskTrial:
        trial = MaskTrial(len(self.masks), mask, "running", math.nan)
        self._trials[trial.number] = trial
        self.masks.append(mask)
        return trial

    def _finish(self, owner: Selector, trial: MaskTrial, killed: bool) -> None:
        number, mask = trial.number, trial.mask
        if killed:
            del self._trials[number]
        elif mask in set(self.invalid):
            self._trials[number] = MaskTrial(number, mask, "invalid", math.inf)
        else:
            state = "complete" if owner.space.is_at_budget(mask) else "pruned"
            self._trials[number] = MaskTrial(number, mask, state, self.loss(mask))
