"""The best mask at the budget if harms add up: a multiple-choice knapsack, solved exactly."""

import numpy as np
import numpy.typing as npt

from mqasearch.mask import LayerMask
from mqasearch.search_space import SearchSpace

Floats = npt.NDArray[np.float64]


def cheapest(space: SearchSpace, harms: Floats) -> LayerMask | None:
    """The mask at the budget with the smallest sum of harms; None if every one has an infinite sum.

    It is a dynamic program over the layers (Kellerer, Pferschy & Pisinger 2004, section 11.5). Its
    states are what the layers so far save, and the shortest step that one of them could go back,
    because a mask at the budget must not save more than it must. With one level it is a choice of
    the least harmful layers; if several are equally harmful, the lowest.

    Args:
        space: the search space.
        harms: ``[n_layers, n_levels]`` harm of each level of each layer alone; may be ``inf``.
    """
    if space.n_levels == 1:
        layers = sorted(range(space.n_layers), key=lambda layer: (harms[layer, 0], layer))
        chosen = layers[: space.least]
        return LayerMask.of(chosen, space.n_layers) if np.isfinite(harms[chosen]).all() else None
    shortest = sorted(set(space.steps))
    width = space.least + shortest[-1]
    costs = np.full((len(shortest), width), np.inf)
    costs[-1, 0] = 0.0
    choices = []
    for layer in range(space.n_layers):
        after, level_of = costs.copy(), np.zeros(costs.shape, dtype=int)
        step_before = np.tile(np.arange(len(shortest))[:, None], width)
        for level, (saving, step) in enumerate(zip(space.savings, space.steps, strict=True), 1):
            if saving >= width:
                continue
            for before in range(len(shortest)):
                row = min(before, shortest.index(step))
                cost = costs[before, :-saving] + harms[layer, level - 1]
                better = cost < after[row, saving:]
                after[row, saving:][better] = cost[better]
                level_of[row, saving:][better] = level
                step_before[row, saving:][better] = before
        costs = after
        choices.append((level_of, step_before))
    ends = [
        (costs[row, saved], row, saved)
        for row, step in enumerate(shortest)
        for saved in range(space.least, space.least + step)
    ]
    cost, row, saved = min(ends)
    if not np.isfinite(cost):
        return None
    levels = []
    each = (0, *space.savings)
    for level_of, step_before in reversed(choices):
        level = int(level_of[row, saved])
        row, saved = int(step_before[row, saved]), saved - each[level]
        levels.append(level)
    return LayerMask(tuple(reversed(levels)))
