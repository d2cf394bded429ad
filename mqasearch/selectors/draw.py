"""Random masks of a given size, and masks brought to the budget."""

import itertools
from collections.abc import Collection, Mapping, Set

import numpy as np

from mqasearch.mask import LayerMask
from mqasearch.search_space import SearchSpace
from mqasearch.selectors.masks_of_size import NOTHING, Level, masks_of_size
from mqasearch.selectors.taken import MaskSet

_TRIES = 100


def random_mask(
    space: SearchSpace, size: int, rng: np.random.Generator, without: Set[Level] = NOTHING
) -> LayerMask:
    """A mask of that size, each equally likely; there must be one.

    Args:
        space: the search space.
        size: as ``space.size`` gives it.
        rng: draws the mask.
        without: levels that no layer has.
    """
    if space.n_levels > 1:
        return masks_of_size(space, size, frozenset(without)).draw(rng)
    layers = [layer for layer in range(space.n_layers) if (layer, 1) not in without]
    places = rng.choice(len(layers), size=size, replace=False)
    return LayerMask.of((layers[place] for place in places), space.n_layers)


def random_unseen(
    space: SearchSpace,
    size: int,
    taken: Collection[LayerMask],
    rng: np.random.Generator,
    without: Set[Level] = NOTHING,
) -> LayerMask | None:
    """A random mask of that size outside ``taken``; None if there is none.

    All masks that are left are equally likely. Masks are drawn and rejected if taken; if that fails
    often, which means that few are left, these are listed and one is chosen.

    Args:
        space: the search space.
        size: as ``space.size`` gives it.
        taken: the masks that are not drawn.
        rng: draws the mask.
        without: levels that no layer has.
    """
    masks = masks_of_size(space, size, frozenset(without))
    if not masks.n:
        return None
    for _ in range(_TRIES):
        mask = random_mask(space, size, rng, without)
        if mask not in taken:
            return mask
    if not n_left(space, size, taken, without):
        return None
    left = [mask for mask in masks if mask not in taken]
    return left[rng.integers(len(left))]


def n_left(
    space: SearchSpace, size: int, taken: Collection[LayerMask], without: Set[Level] = NOTHING
) -> int:
    """How many masks of that size are outside ``taken``; they are counted, not listed.

    Args:
        space: the search space.
        size: as ``space.size`` gives it.
        taken: the masks that do not count.
        without: levels that no layer has.
    """
    if without:
        taken = [mask for mask in taken if without.isdisjoint(enumerate(mask))]
    seen = taken if isinstance(taken, MaskSet) else MaskSet(taken)
    return masks_of_size(space, size, frozenset(without)).n - seen.n_of_size(space, size)


def random_neighbour(
    space: SearchSpace,
    mask: LayerMask,
    taken: Collection[LayerMask],
    rng: np.random.Generator,
    without: Set[Level] = NOTHING,
) -> LayerMask | None:
    """A random mask at the budget outside ``taken`` that differs little; None if none is found.

    With one level it is one switch away: one layer is taken out and another one taken in. With
    several, one layer gets another level, and others take steps until the mask is at the budget.

    Args:
        space: the search space.
        mask: a mask at the budget.
        taken: the masks that are not chosen.
        rng: chooses the switch.
        without: levels that no layer gets.
    """
    if space.n_levels > 1:
        return _changed(space, mask, taken, rng, without)
    inside = rng.permutation(mask.layers)
    outside = rng.permutation(
        [layer for layer, level in enumerate(mask) if not level and (layer, 1) not in without]
    )
    pairs = [*itertools.product(inside, outside)]
    for index in rng.permutation(len(pairs)):
        removed, added = map(int, pairs[index])
        neighbour = mask.with_level(removed, 0).with_level(added, 1)
        if neighbour not in taken:
            return neighbour
    return None


def _changed(
    space: SearchSpace,
    mask: LayerMask,
    taken: Collection[LayerMask],
    rng: np.random.Generator,
    without: Set[Level],
) -> LayerMask | None:
    """The mask with another level of one layer, made up for by others; None after many tries."""
    for _ in range(_TRIES):
        layer = int(rng.integers(space.n_layers))
        level = int(rng.integers(space.n_levels + 1))
        if level == mask.levels[layer] or (layer, level) in without:
            continue
        changed = mask.with_level(layer, level)
        neighbour = repaired(space, changed, rng, fixed={layer: level}, without=without)
        if space.is_at_budget(neighbour) and neighbour != mask and neighbour not in taken:
            return neighbour
    return None


def repaired(
    space: SearchSpace,
    mask: LayerMask,
    rng: np.random.Generator,
    weights: np.ndarray | None = None,
    fixed: Mapping[int, int] | None = None,
    without: Set[Level] = NOTHING,
) -> LayerMask:
    """The mask brought to the budget by steps of one level.

    Args:
        space: the search space.
        mask: any mask of the space.
        rng: decides which layers take a step.
        weights: ``[n_layers, n_levels]`` log-odds of each layer having at least each level. A step
            up is taken with a probability proportional to ``exp(weight)`` and a step down with one
            proportional to ``exp(-weight)``, without replacement (the Gumbel-top-k trick). None =
            all equal.
        fixed: layer → level, for layers whose level is given and must not change. If these alone
            exceed the budget, or leave too few layers to reach it, the result is as close to it as
            they allow.
        without: levels that no layer gets.
    """
    fixed = fixed or {}
    levels = [fixed.get(layer, level) for layer, level in enumerate(mask)]
    levels = [
        _level_before(layer, level, without) if (layer, level) in without else level
        for layer, level in enumerate(levels)
    ]
    odds = np.zeros((space.n_layers, space.n_levels)) if weights is None else weights
    noise = rng.gumbel(size=odds.shape)
    each = (0, *space.savings)
    saved = sum(each[level] for level in levels)
    free = [layer for layer in range(space.n_layers) if layer not in fixed]

    def steps_up() -> list[Level]:
        above = ((layer, _next_level(space, layer, levels[layer], without)) for layer in free)
        return [(layer, level) for layer, level in above if level]

    def steps_down() -> list[Level]:
        below = ((layer, _level_before(layer, levels[layer], without)) for layer in free)
        return [
            (layer, level)
            for layer, level in below
            if level < levels[layer] and saved - each[levels[layer]] + each[level] >= space.least
        ]

    while saved < space.least and (up := steps_up()):
        layer, level = max(up, key=lambda s: (noise + odds)[s[0], s[1] - 1])
        saved += each[level] - each[levels[layer]]
        levels[layer] = level
    while down := steps_down():
        layer, level = max(down, key=lambda s: (noise - odds)[s[0], levels[s[0]] - 1])
        saved += each[level] - each[levels[layer]]
        levels[layer] = level
    return LayerMask(tuple(levels))


def _next_level(space: SearchSpace, layer: int, level: int, without: Set[Level]) -> int:
    """The next higher level that the layer may get; 0 if there is none."""
    higher = range(level + 1, space.n_levels + 1)
    return next((new for new in higher if (layer, new) not in without), 0)


def _level_before(layer: int, level: int, without: Set[Level]) -> int:
    """The next lower level that the layer may get; its own level if it is not converted."""
    lower = range(level - 1, 0, -1)
    return next((new for new in lower if (layer, new) not in without), 0)
