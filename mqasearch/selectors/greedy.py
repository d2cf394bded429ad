"""Convert one more layer at a time, always the one that hurts least."""

import math
from collections.abc import Container
from typing import ClassVar

from mqasearch.mask import LayerMask
from mqasearch.selectors.planned import Plan, PlannedSelector


class GreedySelector(PlannedSelector):
    """Forward selection: from the original model, add the layer with the lowest loss.

    ``lazy=False`` scores every remaining layer in every round. ``lazy=True`` keeps the layers in a
    queue, ordered by the harm each did when it was last scored, and re-scores only the top layer,
    until the top layer has a score of this round (Minoux 1978, "Accelerated greedy algorithms for
    maximizing submodular set functions"). That would be exact if the harm of a layer could only
    grow while others are converted. Losses do not guarantee this, so it is a heuristic: it misses a
    layer that has become less harmful than it was. It costs about ``n_layers + 2 · n_converted``
    evaluations instead of ``n_layers · n_converted``.

    A probe converts fewer layers than the budget. If layers are equally harmful, the lowest is
    taken.

    Args:
        n_layers: layers of the model.
        n_converted: layers that a mask at the budget converts.
        seed: used once the plan has ended.
        lazy: re-score only the top of the queue.
    """

    name: ClassVar[str] = "greedy"
    summary: ClassVar[str] = "the least harmful layer, then the least harmful beside it, and so on"

    def __init__(
        self, n_layers: int, n_converted: int, seed: int = 0, *, lazy: bool = True
    ) -> None:
        super().__init__(n_layers, n_converted, seed)
        self.lazy = lazy

    def expected_trials(self) -> int:
        """One for the original, one for each layer alone, and about two for each further layer."""
        return 1 + self.n_layers + 2 * (self.n_converted - 1)

    def plan(self) -> Plan:
        """Go round by round; each request holds the masks that the queue wants re-scored."""
        chosen = LayerMask.empty(self.n_layers)
        singles = {layer: chosen.with_layers(layer) for layer in range(self.n_layers)}
        losses = yield {chosen: 0.0, **dict.fromkeys(singles.values(), math.inf)}
        current = losses[chosen] if math.isfinite(losses[chosen]) else 0.0
        harm = {layer: losses[mask] - current for layer, mask in singles.items()}
        fresh = set(harm)
        while True:
            while wanted := self._to_score(harm, fresh):
                masks = {layer: chosen.with_layers(layer) for layer in wanted}
                losses = yield {mask: current + harm[layer] for layer, mask in masks.items()}
                harm.update({layer: losses[mask] - current for layer, mask in masks.items()})
                fresh.update(wanted)
            best = _least(harm)
            if harm[best] == math.inf:
                return
            chosen = chosen.with_layers(best)
            if chosen.n_converted == self.n_converted:
                return
            current += harm.pop(best)
            fresh.clear()

    def _to_score(self, harm: dict[int, float], fresh: Container[int]) -> list[int]:
        """The layers that must be scored in this round before the least harmful one is known."""
        wanted = [_least(harm)] if self.lazy else list(harm)
        return [layer for layer in wanted if layer not in fresh]


def _least(harm: dict[int, float]) -> int:
    return min(harm, key=lambda layer: (harm[layer], layer))
