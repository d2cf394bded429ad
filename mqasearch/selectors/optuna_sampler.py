"""Any selector as an Optuna sampler."""

import threading
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from mqasearch.mask import LayerMask
from mqasearch.selectors.draw import repaired
from mqasearch.selectors.history import History, MaskTrial
from mqasearch.selectors.optuna_history import mask_of, read_history
from mqasearch.selectors.parameters import distributions, levels_of, mask_params, param_name
from mqasearch.selectors.selector import Selector


class SelectorSampler(BaseSampler):
    """Makes a selector propose the masks of an Optuna study.

    The objective suggests each layer's flag as the categorical parameter ``layer_00``, ``layer_01``
    … of the choices ``(False, True)``; if the space has several levels, the choices are the numbers
    of KV heads, ascending. Any other parameter that it suggests is drawn at random. An
    enqueued mask is run as it is, even if it does not meet the budget. If only some layers
    are enqueued, the others are chosen so that the mask meets the budget.

    The trial of a mask below the budget may report its value and be pruned, so that the study's
    best trial is a mask at the budget. A trial that fails says nothing about its mask, which is
    proposed again, unless the trial's user attribute ``mqasearch:invalid`` says why the mask itself
    has no value.

    Example::

        space = SearchSpace(n_layers=30, least=5)
        sampler = SelectorSampler(selector_of("greedy", space))
        study = optuna.create_study(sampler=sampler)
        study.optimize(objective, callbacks=[sampler.stop_when_done])

    Args:
        selector: chooses the masks.
    """

    def __init__(self, selector: Selector) -> None:
        self.selector = selector
        self._foreign = RandomSampler(selector.seed)
        self._proposing = threading.Lock()
        self._proposed: dict[int, LayerMask] = {}
        """Trial number → mask of this process's trials, whose parameters may still be unwritten."""

    def stop_when_done(self, study: Study, trial: FrozenTrial) -> None:
        """For ``callbacks`` of ``study.optimize``: ends it when the selector wants no more."""
        if self.selector.wants(self.history(study)).done:
            study.stop()

    def history(self, study: Study, *, without: int | None = None) -> History:
        """All that the study knows about masks.

        Args:
            study: a study that uses this sampler.
            without: the number of an unfinished trial, which is the next one to get a mask.
        """
        return read_history(study, self.selector.space, without=without)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """The layers' parameters, always."""
        return distributions(self.selector.space)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The proposed mask as parameters; anything but layers is drawn at random.

        Raises:
            ValueError: the study has several objectives.
        """
        self._raise_error_if_multi_objective(study)
        names = [param_name(layer) for layer in range(self.selector.n_layers)]
        if not search_space.keys() <= set(names):
            return {
                name: self._foreign.sample_independent(study, trial, name, distribution)
                for name, distribution in search_space.items()
            }
        space = self.selector.space
        mask = mask_of(trial, space) or self.propose(study, trial)
        params = mask_params(mask, space)
        return {name: params[name] for name in search_space}

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """A random value for a parameter that is not the flag of a layer.

        Raises:
            ValueError: the study has several objectives.
        """
        self._raise_error_if_multi_objective(study)
        return self._foreign.sample_independent(study, trial, param_name, param_distribution)

    def reseed_rng(self) -> None:
        """Masks need no reseeding, for their randomness follows from the trial's number."""
        self._foreign.reseed_rng()

    def propose(self, study: Study, trial: FrozenTrial) -> LayerMask:
        """A mask for a trial that has none."""
        with self._proposing:
            history = self._with_proposed(self.history(study, without=trial.number), study)
            mask = self._within_fixed(trial, self._chosen(history))
            self._proposed[trial.number] = mask
        return mask

    def _chosen(self, history: History) -> LayerMask:
        """The mask that is proposed next."""
        wanted = self.selector.wants(history).masks
        return wanted[0] if wanted else self.selector.spare(history)

    def _within_fixed(self, trial: FrozenTrial, mask: LayerMask) -> LayerMask:
        """The mask with the levels that an enqueued trial gives, brought to the budget again."""
        fixed = levels_of(trial.system_attrs.get("fixed_params", {}), self.selector.space)
        if not fixed:
            return mask
        rng = np.random.default_rng((self.selector.seed, trial.number))
        return repaired(self.selector.space, mask, rng, fixed=fixed)

    def _with_proposed(self, history: History, study: Study) -> History:
        """The history with the masks that this process proposed and that are not written yet."""
        if not self._proposed:
            return history
        running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        unfinished = {trial.number for trial in running}
        self._proposed = {n: mask for n, mask in self._proposed.items() if n in unfinished}
        written = {trial.number for trial in history}
        unwritten = [
            MaskTrial(number, mask, "running", float("nan"))
            for number, mask in self._proposed.items()
            if number not in written and number != history.number
        ]
        together = sorted([*history, *unwritten], key=lambda trial: trial.number)
        return History(together, history.number)
