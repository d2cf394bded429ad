"""Optuna's TPE on masks at the budget."""

import math
from collections.abc import Container, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import TPESampler
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from mqasearch.errors import UserError
from mqasearch.mask import LayerMask
from mqasearch.search_space import SearchSpace
from mqasearch.selectors.diverging import suspect
from mqasearch.selectors.draw import random_neighbour, repaired
from mqasearch.selectors.history import History, MaskTrial
from mqasearch.selectors.parameters import distributions, levels_of, mask_params
from mqasearch.selectors.selector import Selector, Wants


class TPESelector(Selector):
    """Bayesian search: Optuna's multivariate tree-structured Parzen estimator, repaired.

    The estimator knows no budget and proposes masks of any size (at 5 of 30 layers usually 7 to
    9), so each is repaired: layers are dropped, or added, at random until the number is right,
    weighted by the odds that each layer has among the best masks against the rest (TPE's own
    criterion, layer by layer). Every trial is feasible by construction. With constraints instead,
    most trials would be infeasible and the estimator would learn nothing from them (Optuna's
    constrained TPE was no better than random here).

    A repaired mask that was seen before is replaced by an unseen neighbour (one layer swapped), so
    that a search that has converged explores around its best masks instead of repeating them.
    Running trials count as bad ones (the constant liar), which spreads workers out.

    If several masks in a row have no score, the estimator learns nothing from them; the layers are
    then tried alone, and those that have no score alone are left out.

    Args:
        space: the masks that may be proposed, and the budget.
        seed: ≥ 0.
        n_startup_trials: random masks before the estimator is asked, ≥ 1.

    Raises:
        UserError: ``n_startup_trials`` below 1.
    """

    name: ClassVar[str] = "tpe"
    summary: ClassVar[str] = "Bayesian search (Optuna's TPE), every mask repaired to the budget"

    def __init__(self, space: SearchSpace, seed: int = 0, *, n_startup_trials: int = 10) -> None:
        super().__init__(space, seed)
        if n_startup_trials < 1:
            raise UserError(f"n_startup_trials {n_startup_trials} is too few; choose 1 or more")
        self.n_startup_trials = n_startup_trials

    def wants(self, history: History) -> Wants:
        """The estimator's proposal, brought to the budget and replaced if it was seen before."""
        if (ended := self.none_left(history)) is not None:
            return ended
        alone = suspect(history, self.space)
        return Wants((alone or self._proposed(history),))

    def _proposed(self, history: History) -> LayerMask:
        rng = self.generator(history)
        liked = self._liked(history, int(rng.spawn(1)[0].integers(2**32)))
        if liked is None:
            return self.random_mask(history, rng)
        log_odds = level_log_odds(history, self.space)
        shunned = self.shunned(history)
        mask = repaired(self.space, liked, rng, log_odds, without=shunned)
        if not self.space.is_at_budget(mask):  # only levels that have no score would bring it there
            return self.random_mask(history, rng)
        if mask not in history.taken:
            return mask
        neighbour = random_neighbour(self.space, mask, history.taken, rng, shunned)
        return neighbour or self.random_mask(history, rng)

    def _liked(self, history: History, seed: int) -> LayerMask | None:
        """Optuna's own proposal, of any size; None while it wants random masks."""
        # A new instance each time: its random state must not depend on earlier calls.
        tpe = TPESampler(
            multivariate=True,
            constant_liar=True,
            n_startup_trials=self.n_startup_trials,
            seed=seed,
        )
        space = distributions(self.space)
        trials = [self._frozen(trial, space) for trial in history if trial.state != "invalid"]
        study = optuna.load_study(study_name="masks", storage=_GivenTrials(trials))
        asking = FrozenTrial(history.number, TrialState.RUNNING, **_NOTHING, trial_id=-1)
        params = tpe.sample_relative(study, asking, space)
        return LayerMask(tuple(levels_of(params, self.space).values())) if params else None

    def _frozen(self, trial: MaskTrial, space: dict[str, BaseDistribution]) -> FrozenTrial:
        """The trial in Optuna's form."""
        told = {} if trial.state == "running" else {self.space.saved(trial.mask): trial.loss}
        facts = {
            **_NOTHING,
            "value": trial.loss if trial.state == "complete" else None,
            "params": mask_params(trial.mask, self.space),
            "distributions": space,
            "intermediate_values": told,
        }
        return FrozenTrial(trial.number, _STATES[trial.state], **facts, trial_id=trial.number)


_NOTHING: Mapping[str, Any] = {
    "value": None,
    "datetime_start": None,
    "datetime_complete": None,
    "params": {},
    "distributions": {},
    "user_attrs": {},
    "system_attrs": {},
    "intermediate_values": {},
}
_STATES = {
    "running": TrialState.RUNNING,
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
}


class _GivenTrials(InMemoryStorage):
    """A storage of one study, whose trials never change and need not be copied at each read."""

    def __init__(self, trials: Sequence[FrozenTrial]) -> None:
        super().__init__()
        self._given = trials

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        """All trials, or those in the given states."""
        return [trial for trial in self._given if states is None or trial.state in states]

    def get_study_id_from_name(self, study_name: str) -> int:
        """The id of the only study."""
        return 0

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """Minimise, since the values are losses."""
        return [StudyDirection.MINIMIZE]

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Ignored: TPE notes what it proposed, for a trial that is not among those given."""


def level_log_odds(history: Sequence[MaskTrial], space: SearchSpace) -> npt.NDArray[np.float64]:
    """How much likelier a layer has at least a level in the best masks than in the others.

    The best masks are as many as Optuna's TPE takes: a tenth, at most 25. Each of the two
    frequencies has a prior with the weight of one mask and a value a little below
    ``least / most``, so that no odds are infinite.

    Returns:
        ``[n_layers, n_levels]`` log odds ratios; zeros without a mask at the budget.
    """
    scored = sorted((t for t in history if t.state == "complete"), key=lambda t: t.loss)
    levels = np.array([t.mask.levels for t in scored], dtype=int).reshape(-1, space.n_layers, 1)
    flags = levels >= np.arange(1, space.n_levels + 1)
    n_best = min(math.ceil(len(scored) / 10), 25)
    prior = space.least / (space.most + space.savings[-1])
    best = (flags[:n_best].sum(axis=0) + prior) / (n_best + 1)
    rest = (flags[n_best:].sum(axis=0) + prior) / (len(scored) - n_best + 1)
    odds: npt.NDArray[np.float64] = np.log(best / (1 - best)) - np.log(rest / (1 - rest))
    return odds
