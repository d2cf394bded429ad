"""Workers simulated in one process, their trials finishing in random order."""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from mqasearch.mask import LayerMask
from mqasearch.selectors import History, MaskTrial, Selector, Wants

Loss = Callable[[LayerMask], float]
Make = Callable[[], Selector]


def additive_loss(n_layers: int, seed: int) -> Loss:
    """Every layer has a harm of its own, and the harms add up."""
    return pairwise_loss(n_layers, seed, strength=0.0)


def pairwise_loss(n_layers: int, seed: int, strength: float = 0.7) -> Loss:
    """Layers interact in pairs, for better or worse."""
    rng = np.random.default_rng(seed)
    harm = rng.lognormal(size=n_layers)
    scale = strength * np.sqrt(np.outer(harm, harm))
    pairs = np.triu(rng.normal(size=(n_layers, n_layers)) * scale, 1)

    def loss(mask: LayerMask) -> float:
        flags = np.array(mask.flags, dtype=float)
        return float(1 + flags @ harm + flags @ pairs @ flags)

    return loss


def all_masks(n_layers: int, n_converted: int) -> list[LayerMask]:
    """Every mask with exactly ``n_converted`` layers."""
    layers = itertools.combinations(range(n_layers), n_converted)
    return [LayerMask.of(chosen, n_layers) for chosen in layers]


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
            state = "complete" if mask.n_converted == owner.n_converted else "pruned"
            self._trials[number] = MaskTrial(number, mask, state, self.loss(mask))
