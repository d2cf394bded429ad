"""Rank the layers by the harm that each does alone."""

import math
from typing import ClassVar

from mqasearch.mask import LayerMask
from mqasearch.selectors.planned import Plan, PlannedSelector, Subplan


class SensitivitySelector(PlannedSelector):
    """Scores every layer alone, then prefixes of the ranking: the mask at the budget first.

    Optimal if layers do not interact (their losses add up). On real models it is nearly always
    close to greedy at a fraction of its cost, and it is the baseline of every other search.
    """

    name: ClassVar[str] = "sensitivity"
    summary: ClassVar[str] = "each layer alone, then the least sensitive ones together"

    def expected_trials(self) -> int:
        """One for the original, one for each layer alone, and one for each longer prefix."""
        return self.n_layers + self.n_converted

    def plan(self) -> Plan:
        """Request all single layers together, then all prefixes together."""
        ranking = yield from ranked_layers(self.n_layers)
        lengths = range(self.n_converted, 1, -1)
        prefixes = [LayerMask.of(ranking[:length], self.n_layers) for length in lengths]
        if prefixes:
            yield dict.fromkeys(prefixes, math.inf)


def ranked_layers(n_layers: int) -> Subplan[list[int]]:
    """Score each layer alone and return the layers, least harmful first; ties by layer number."""
    singles = {layer: LayerMask.of([layer], n_layers) for layer in range(n_layers)}
    losses = yield dict.fromkeys(singles.values(), math.inf)
    return sorted(singles, key=lambda layer: (losses[singles[layer]], layer))
