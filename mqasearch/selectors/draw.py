"""Random masks with a given number of converted layers, and masks brought to that number."""

import itertools
import math
from collections.abc import Collection, Mapping, Set

import numpy as np

from mqasearch.mask import LayerMask
from mqasearch.selectors.taken import MaskSet

_TRIES = 100
_NONE: frozenset[int] = frozenset()


def random_mask(
    n_layers: int, n_converted: int, rng: np.random.Generator, without: Set[int] = _NONE
) -> LayerMask:
    """A mask with exactly ``n_converted`` layers, each such mask equally likely.

    Args:
        without: layers that are not converted.
    """
    layers = _others(n_layers, without)
    places = rng.choice(len(layers), size=n_converted, replace=False)
    return LayerMask.of((layers[place] for place in places), n_layers)


def _others(n_layers: int, without: Set[int]) -> list[int]:
    return [layer for layer in range(n_layers) if layer not in without]


def random_unseen(
    n_layers: int,
    n_converted: int,
    taken: Collection[LayerMask],
    rng: np.random.Generator,
    without: Set[int] = _NONE,
) -> LayerMask | None:
    """A random mask with exactly ``n_converted`` layers outside ``taken``; None if there is none.

    All masks that are left are equally likely. Masks are drawn and rejected if taken; if that fails
    often, which means that few are left, these are listed and one is chosen.

    Args:
        without: layers that are not converted.
    """
    for _ in range(_TRIES):
        mask = random_mask(n_layers, n_converted, rng, without)
        if mask not in taken:
            return mask
    if not n_left(n_layers, n_converted, taken, without):
        return None
    chosen = itertools.combinations(_others(n_layers, without), n_converted)
    masks = (LayerMask.of(layers, n_layers) for layers in chosen)
    left = [mask for mask in masks if mask not in taken]
    return left[rng.integers(len(left))]


def n_left(
    n_layers: int, n_converted: int, taken: Collection[LayerMask], without: Set[int] = _NONE
) -> int:
    """How many masks with exactly ``n_converted`` layers are outside ``taken``.

    Counts only; nothing is listed.

    Args:
        without: layers that are not converted.
    """
    if without:
        taken = [mask for mask in taken if without.isdisjoint(mask.layers)]
    masks = taken if isinstance(taken, MaskSet) else MaskSet(taken)
    return math.comb(n_layers - len(without), n_converted) - masks.n_of_size(n_converted)


def random_neighbour(
    mask: LayerMask,
    taken: Collection[LayerMask],
    rng: np.random.Generator,
    without: Set[int] = _NONE,
) -> LayerMask | None:
    """A random mask outside ``taken`` that differs by one swap; None if all of them are taken.

    A swap takes one layer out and another one in, so the number of converted layers stays the same.

    Args:
        without: layers that are not taken in.
    """
    inside = rng.permutation(mask.layers)
    outside = rng.permutation(_others(len(mask), {*mask.layers, *without}))
    pairs = list(itertools.product(inside, outside))
    for index in rng.permutation(len(pairs)):
        removed, added = pairs[index]
        neighbour = swapped(mask, int(removed), int(added))
        if neighbour not in taken:
            return neighbour
    return None


def swapped(mask: LayerMask, removed: int, added: int) -> LayerMask:
    """The mask with one layer taken out and another one put in."""
    return LayerMask.of({*mask.layers, added} - {removed}, len(mask))


def repaired(
    mask: LayerMask,
    n_converted: int,
    rng: np.random.Generator,
    weights: np.ndarray | None = None,
    fixed: Mapping[int, bool] | None = None,
) -> LayerMask:
    """The mask brought to exactly ``n_converted`` layers by dropping or adding layers.

    Args:
        mask: a mask with any number of converted layers.
        n_converted: number of layers that the result converts.
        rng: decides which layers are dropped or added.
        weights: ``[n_layers]`` log-odds of each layer being converted. A layer is added with a
            probability proportional to ``exp(weight)`` and dropped with one proportional to
            ``exp(-weight)``, without replacement (the Gumbel-top-k trick). None = all equal.
        fixed: layers whose flag is given and must not change. If these alone exceed the budget, or
            leave too few layers to reach it, the result is as close to it as they allow.
    """
    fixed = fixed or {}
    flags = np.array([fixed.get(layer, flag) for layer, flag in enumerate(mask)])
    surplus = int(flags.sum()) - n_converted
    log_odds = np.zeros(len(mask)) if weights is None else weights
    keys = rng.gumbel(size=len(mask)) + np.where(flags, -log_odds, log_odds)
    free = [layer for layer in range(len(mask)) if layer not in fixed]
    candidates = [layer for layer in free if flags[layer] == (surplus > 0)]
    for layer in sorted(candidates, key=lambda layer: -keys[layer])[: abs(surplus)]:
        flags[layer] = not flags[layer]
    return LayerMask(tuple(bool(flag) for flag in flags))
