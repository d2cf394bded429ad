"""Convert a little more at a time, always what hurts least for what it saves."""

import math
from collections.abc import Container
from typing import ClassVar

from mqasearch.mask import LayerMask
from mqasearch.search_space import SearchSpace
from mqasearch.selectors.planned import Plan, PlannedSelector, Subplan


class GreedySelector(PlannedSelector):
    """Forward selection: from the original model, take the step with the least harm per byte.

    A step takes one layer to its next level. With one level it converts the layer, so that each
    round adds the layer with the lowest loss.

    ``lazy=False`` scores every step in every round. ``lazy=True`` keeps the steps in a queue,
    ordered by the harm per byte that each did when it was last scored, and re-scores only the top
    one, until the top one has a score of this round (Minoux 1978, "Accelerated greedy algorithms
    for maximizing submodular set functions"). That would be exact if the harm of a step could only
    grow while others are taken, and if a layer's next step did at least as much harm per byte as
    the step before. Losses do not guarantee this, so it is a heuristic: it misses a step that has
    become less harmful than it was. With one level it costs about ``n_layers + 2 · n_converted``
    evaluations instead of ``n_layers · n_converted``.

    A probe saves less than the budget. If steps are equally harmful, that of the lowest layer is
    taken. If the last step saves more than it must, earlier steps are taken back while the mask
    still saves enough, the most harmful first.

    Args:
        space: the masks that may be proposed, and the budget.
        seed: used once the plan has ended.
        lazy: re-score only the top of the queue.
    """

    name: ClassVar[str] = "greedy"
    summary: ClassVar[str] = "the least harmful layer, then the least harmful beside it, and so on"

    def __init__(self, space: SearchSpace, seed: int = 0, *, lazy: bool = True) -> None:
        super().__init__(space, seed)
        self.lazy = lazy

    def expected_trials(self) -> int:
        """One for the original, one for each layer alone, and about two for each further step."""
        n_steps = math.ceil(self.space.least * self.space.n_levels / self.space.savings[-1])
        return 1 + self.n_layers + 2 * (n_steps - 1)

    def plan(self) -> Plan:
        """Go round by round; each request holds the masks that the queue wants re-scored."""
        chosen = LayerMask.empty(self.n_layers)
        singles = {layer: chosen.with_level(layer, 1) for layer in range(self.n_layers)}
        losses = yield {chosen: 0.0, **dict.fromkeys(singles.values(), math.inf)}
        current = losses[chosen] if math.isfinite(losses[chosen]) else 0.0
        harm = {layer: losses[mask] - current for layer, mask in singles.items()}
        fresh = set(harm)
        taken: dict[tuple[int, int], float] = {}
        while True:
            while wanted := self._to_score(chosen, harm, fresh):
                masks = {layer: self._step(chosen, layer) for layer in wanted}
                losses = yield {mask: current + harm[layer] for layer, mask in masks.items()}
                harm.update({layer: losses[mask] - current for layer, mask in masks.items()})
                fresh.update(wanted)
            best = self._least(chosen, harm)
            if harm[best] == math.inf:
                return
            chosen = self._step(chosen, best)
            level = chosen.levels[best]
            taken[best, level] = harm[best] / self.space.steps[level - 1]
            if self.space.saved(chosen) >= self.space.least:
                yield from self._brought_back(chosen, taken)
                return
            current += harm.pop(best)
            fresh.clear()
            if level < self.space.n_levels:
                harm[best] = taken[best, level] * self.space.steps[level]
            if not harm:
                return

    def _to_score(
        self, chosen: LayerMask, harm: dict[int, float], fresh: Container[int]
    ) -> list[int]:
        """The layers that must be scored in this round before the least harmful step is known."""
        wanted = [self._least(chosen, harm)] if self.lazy else list(harm)
        return [layer for layer in wanted if layer not in fresh]

    def _least(self, chosen: LayerMask, harm: dict[int, float]) -> int:
        """The layer whose next step does the least harm for what it saves."""
        steps = self.space.steps
        return min(harm, key=lambda n: (harm[n] / steps[chosen.levels[n]], n))

    def _step(self, chosen: LayerMask, layer: int) -> LayerMask:
        return chosen.with_level(layer, chosen.levels[layer] + 1)

    def _brought_back(
        self, chosen: LayerMask, taken: dict[tuple[int, int], float]
    ) -> Subplan[None]:
        """Request the mask at the budget that is left when steps are taken back."""
        mask = chosen
        while not self.space.is_at_budget(mask):
            back = [mask.with_level(n, level - 1) for n, level in enumerate(mask) if level]
            harms = [taken[n, level] for n, level in enumerate(mask) if level]
            enough = [
                (harm, -place)
                for place, (harm, less) in enumerate(zip(harms, back, strict=True))
                if self.space.saved(less) >= self.space.least
            ]
            mask = back[-max(enough)[1]]
        if mask != chosen:
            yield {mask: math.inf}
