"""Optuna's TPE on masks at the budget."""

import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from optuna.samplers import TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from mqasearch.errors import UserError
from mqasearch.mask import LayerMask
from mqasearch.samplers.base import MaskSampler
from mqasearch.samplers.diverging import suspect
from mqasearch.samplers.draw import random_neighbour, repaired
from mqasearch.samplers.history import MaskTrial, taken
from mqasearch.samplers.space import search_space


class TPEMaskSampler(MaskSampler):
    """Bayesian search: Optuna's multivariate tree-structured Parzen estimator, repaired.

    The estimator knows no budget and proposes masks of any size (at 5 of 30 layers usually 7 to
    9), so each is repaired: layers are dropped, or added, at random until the number is right,
    with the odds that each layer has among the best masks against the rest (TPE's own criterion,
    layer by layer). Every trial is feasible by construction; constraints instead leave most
    trials infeasible and learn nothing (Optuna's constrained TPE was no better than random here).

    A repaired mask that was seen before is replaced by an unseen neighbour (one layer swapped), so
    that a search that has settled explores round its best masks instead of repeating them. Running
    trials count as bad ones (the constant liar), which spreads workers out.

    Where one mask after the other has no score, which the estimator learns nothing from, the layers
    are tried alone, and those that have none are left out.

    Args:
        n_layers: layers of the model.
        n_converted: layers that a mask at the budget converts.
        seed: ≥ 0.
        n_startup_trials: random masks before the estimator is asked, ≥ 1.

    Raises:
        UserError: ``n_startup_trials`` below 1.
    """

    name: ClassVar[str] = "tpe"
    summary: ClassVar[str] = "Bayesian search (Optuna's TPE), every mask repaired to the budget"

    def __init__(
        self, n_layers: int, n_converted: int, seed: int = 0, *, n_startup_trials: int = 10
    ) -> None:
        super().__init__(n_layers, n_converted, seed)
        if n_startup_trials < 1:
            raise UserError(f"n_startup_trials {n_startup_trials} is too few; choose 1 or more")
        self.n_startup_trials = n_startup_trials

    def propose(self, history: Sequence[MaskTrial], rng: np.random.Generator) -> LayerMask:
        """The startup's proposal: a random unseen mask at the budget."""
        return self.random_mask(history, rng)

    def draw(
        self,
        study: Study,
        trial: FrozenTrial,
        history: Sequence[MaskTrial],
        rng: np.random.Generator,
    ) -> LayerMask:
        """What the estimator likes best, brought to the budget and away from what is seen."""
        # A new instance per trial: its random state must follow from the trial, not from the past.
        tpe = TPESampler(
            multivariate=True,
            constant_liar=True,
            n_startup_trials=self.n_startup_trials,
            seed=int(rng.spawn(1)[0].integers(2**32)),
        )
        alone = suspect(history, self.n_layers, self.n_converted)
        if alone is not None:
            return alone
        params = tpe.sample_relative(study, trial, search_space(self.n_layers))
        if not params:
            return self.propose(history, rng)
        log_odds = layer_log_odds(history, self.n_layers, self.n_converted)
        liked, shunned = LayerMask(tuple(params.values())), self.shunned(history)
        fixed = dict.fromkeys(shunned, False)
        mask = repaired(liked, self.n_converted, rng, log_odds, fixed)
        seen = taken(history)
        if mask in seen:
            neighbour = random_neighbour(mask, seen, rng, shunned)
            return neighbour or self.random_mask(history, rng)
        return mask


def layer_log_odds(
    history: Sequence[MaskTrial], n_layers: int, n_converted: int
) -> npt.NDArray[np.float64]:
    """How much better each layer's odds are among the best masks at the budget than in the rest.

    The best are the share that Optuna's TPE takes: a tenth, at most 25. Both frequencies have one
    mask's worth of prior, a little below ``n_converted / n_layers`` so that no odds are infinite.

    Returns:
        ``[n_layers]`` log odds ratios; zeros without a mask at the budget.
    """
    scored = sorted((t for t in history if t.state == "complete"), key=lambda t: t.loss)
    flags = np.array([t.mask.flags for t in scored], dtype=float).reshape(-1, n_layers)
    n_best = min(math.ceil(len(scored) / 10), 25)
    prior = n_converted / (n_layers + 1)
    best = (flags[:n_best].sum(axis=0) + prior) / (n_best + 1)
    rest = (flags[n_best:].sum(axis=0) + prior) / (len(scored) - n_best + 1)
    odds: npt.NDArray[np.float64] = np.log(best / (1 - best)) - np.log(rest / (1 - rest))
    return odds
