"""Convert a little more at a time, always what hurts least for what it saves."""

import math
from collections.abc import Container, Mapping
from typing import ClassVar

from mqasearch.mask import LayerMask
from mqasearch.search_space import SearchSpace
from mqasearch.selectors.planned import Plan, PlannedSelector

Taken = dict[tuple[int, int], float]
"""(layer, level) → harm for what it saved, of the steps that were taken."""


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
    taken. If a step would save more than it must, earlier steps are taken back with it while the
    mask still saves enough, the most harmful first.

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
        taken: Taken = {}
        singles = {layer: self._step(chosen, layer, taken) for layer in range(self.n_layers)}
        losses = yield {chosen: 0.0, **dict.fromkeys(singles.values(), math.inf)}
        current = losses[chosen] if math.isfinite(losses[chosen]) else 0.0
        harm = {layer: losses[mask] - current for layer, mask in singles.items()}
        fresh = set(harm)
        while harm:
            saving = {n: self._saving(chosen, self._step(chosen, n, taken)) for n in harm}
            while wanted := self._to_score(harm, saving, fresh):
                masks = {layer: self._step(chosen, layer, taken) for layer in wanted}
                losses = yield {mask: current + harm[layer] for layer, mask in masks.items()}
                harm.update({layer: losses[mask] - current for layer, mask in masks.items()})
                fresh.update(wanted)
            best = _least(harm, saving)
            if harm[best] == math.inf:
                return
            chosen = self._step(chosen, best, taken)
            if self.space.is_at_budget(chosen):
                return
            level = chosen.levels[best]
            taken[best, level] = harm[best] / saving[best]
            current += harm.pop(best)
            fresh.clear()
            if level < self.space.n_levels:
                harm[best] = taken[best, level] * self.space.steps[level]

    def _to_score(
        self, harm: Mapping[int, float], saving: Mapping[int, int], fresh: Container[int]
    ) -> list[int]:
        """The layers that must be scored in this round before the least harmful step is known."""
        wanted = [_least(harm, saving)] if self.lazy else list(harm)
        return [layer for layer in wanted if layer not in fresh]

    def _saving(self, before: LayerMask, after: LayerMask) -> int:
        return self.space.saved(after) - self.space.saved(before)

    def _step(self, chosen: LayerMask, layer: int, taken: Taken) -> LayerMask:
        """The mask with the next level of a layer, brought back to the budget if it saves more."""
        mask = chosen.with_level(layer, chosen.levels[layer] + 1)
        while self.space.size(mask) > self.space.least:
            backs = [(n, mask.with_level(n, mask.levels[n] - 1)) for n in mask.layers]
            enough = [(n, b) for n, b in backs if self.space.saved(b) >= self.space.least]
            mask = max(enough, key=lambda row: (taken[row[0], row[1].levels[row[0]] + 1], row[0]))[
                1
            ]
        return mask


def _least(harm: Mapping[int, float], saving: Mapping[int, int]) -> int:
    """The layer whose next step does the least harm for what it saves."""
    return min(harm, key=lambda layer: (harm[layer] / saving[layer], layer))
