"""Rank the layers by the harm that each does alone."""

import math
from typing import ClassVar

import numpy as np

from mqasearch.mask import LayerMask
from mqasearch.selectors.knapsack import Floats, cheapest
from mqasearch.selectors.planned import Plan, PlannedSelector


class SensitivitySelector(PlannedSelector):
    """Scores every layer alone, at every level, then the masks that are best if harms add up.

    The mask at the budget comes first, then the best masks at ever larger budgets, one layer's
    savings apart. With one level, these are the prefixes of the ranking of layers.

    Optimal if layers do not interact (their losses add up). On real models it is nearly always
    close to greedy at a fraction of its cost, and it is the baseline of every other search. With
    several levels it is what Puzzletron (arXiv 2411.19146) solves as an integer program.
    """

    name: ClassVar[str] = "sensitivity"
    summary: ClassVar[str] = "each layer alone, then the least sensitive ones together"

    def expected_trials(self) -> int:
        """One for the original, one for each level of each layer, and one for each budget."""
        return 1 + self.n_layers * self.space.deepest + len(self._budgets())

    def plan(self) -> Plan:
        """Request all layers alone together, then all masks of several layers together."""
        alone = [*self.space.alone()]
        losses = yield {
            **({LayerMask.empty(self.n_layers): 0.0} if self.space.n_levels > 1 else {}),
            **dict.fromkeys(alone, math.inf),
        }
        harms = self._harms([losses[mask] for mask in alone])
        if self.space.n_levels > 1:
            original = losses[LayerMask.empty(self.n_layers)]
            harms -= original if math.isfinite(original) else 0.0
        best = (cheapest(self.space.with_least(least), harms) for least in self._budgets())
        wanted = [mask for mask in best if mask is not None]
        if wanted:
            yield dict.fromkeys(wanted, math.inf)

    def _harms(self, losses: list[float]) -> Floats:
        """``[n_layers, n_levels]`` of losses that are sorted as in ``space.alone()``.

        Levels that no mask at the budget has are infinite.
        """
        harms = np.full((self.space.n_levels, self.n_layers), np.inf)
        harms[: self.space.deepest] = np.array(losses).reshape(-1, self.n_layers)
        return harms.T

    def _budgets(self) -> range:
        """What the masks save at least: that of the budget first, then less and less."""
        return range(self.space.least, self.space.savings[0], -self.space.savings[-1])
