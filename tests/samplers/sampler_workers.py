"""Workers simulated in one process, their trials finishing in random order."""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import optuna
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import TrialState

from mqasearch.mask import LayerMask
from mqasearch.samplers import INVALID_KEY, MaskSampler, Outlook, param_name

Loss = Callable[[LayerMask], float]
Make = Callable[[], MaskSampler]


def additive_loss(n_layers: int, seed: int) -> Loss:
    """Every layer has a harm of its own and they add up."""
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


def new_study(direction: str = "minimize") -> optuna.Study:
    return optuna.create_study(storage=InMemoryStorage(), direction=direction)


def suggest(trial: optuna.Trial, n_layers: int) -> LayerMask:
    names = map(param_name, range(n_layers))
    return LayerMask(tuple(trial.suggest_categorical(name, (False, True)) for name in names))


def finish(study: optuna.Study, trial: optuna.Trial, at_budget: bool, value: float) -> None:
    """End a trial as the objective does: COMPLETE at the budget, PRUNED below it."""
    if at_budget:
        study.tell(trial, value)
    else:
        trial.report(value, step=0)
        study.tell(trial, state=TrialState.PRUNED)


def fail(study: optuna.Study, trial: optuna.Trial, invalid: bool = False) -> None:
    """End a trial as a killed worker's ends, or as one whose score is not a number."""
    if invalid:
        trial.set_user_attr(INVALID_KEY, "not a number")
    study.tell(trial, state=TrialState.FAIL)


@dataclass
class Simulation:
    """Some workers on one study.

    Attributes:
        make: a fresh sampler; every worker makes its own.
        loss: of a mask.
        n_workers: at once.
        seed: of who does what when.
        kill: probability that a trial's worker dies before it is finished.
        invalid: masks whose score is not a number.
        study: shared by the workers through its storage.
        masks: everything proposed, in order.
    """

    make: Make
    loss: Loss
    n_workers: int = 1
    seed: int = 0
    kill: float = 0.0
    invalid: Iterable[LayerMask] = ()
    study: optuna.Study = field(default_factory=new_study)
    masks: list[LayerMask] = field(default_factory=list)

    def run(self, n_trials: int | None = None) -> "Simulation":
        """Until every worker is told DONE, or ``n_trials`` were started (whatever the outlook)."""
        rng = np.random.default_rng(self.seed)
        idle = [self._worker() for _ in range(self.n_workers)]
        running: list[tuple[optuna.Study, optuna.Trial, LayerMask]] = []
        while idle or running:
            worker = idle.pop(rng.integers(len(idle))) if idle and rng.random() < 0.6 else None
            if worker is not None and (outlook := self._outlook(worker, n_trials)) != Outlook.WAIT:
                if outlook == Outlook.READY:
                    running.append(self._start(worker))
                continue
            if worker is not None:
                idle.append(worker)
                assert running, "a worker waits for nobody"
            if running:
                done = running.pop(rng.integers(len(running)))
                self._finish(*done, killed=rng.random() < self.kill)
                idle.append(done[0])
        return self

    @property
    def best(self) -> LayerMask:
        return self.mask(self.study.best_trial)

    @property
    def at_budget(self) -> set[LayerMask]:
        return {self.mask(t) for t in self.study.trials if t.state == TrialState.COMPLETE}

    def mask(self, trial: optuna.trial.FrozenTrial) -> LayerMask:
        return LayerMask(tuple(trial.params[name] for name in sorted(trial.params)))

    @property
    def _storage(self) -> BaseStorage:
        return self.study._storage

    def _worker(self) -> optuna.Study:
        return optuna.load_study(
            study_name=self.study.study_name, storage=self._storage, sampler=self.make()
        )

    def _outlook(self, worker: optuna.Study, n_trials: int | None) -> Outlook:
        if n_trials is not None:
            return Outlook.READY if len(self.masks) < n_trials else Outlook.DONE
        return sampler(worker).outlook(sampler(worker).history(worker))

    def _start(self, worker: optuna.Study) -> tuple[optuna.Study, optuna.Trial, LayerMask]:
        trial = worker.ask()
        mask = suggest(trial, sampler(worker).n_layers)
        self.masks.append(mask)
        return worker, trial, mask

    def _finish(
        self, worker: optuna.Study, trial: optuna.Trial, mask: LayerMask, killed: bool
    ) -> None:
        if killed or mask in set(self.invalid):
            fail(worker, trial, invalid=not killed)
        else:
            finish(worker, trial, mask.n_converted == sampler(worker).n_converted, self.loss(mask))


def sampler(study: optuna.Study) -> MaskSampler:
    assert isinstance(study.sampler, MaskSampler)
    return study.sampler
