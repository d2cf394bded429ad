"""Masks at the budget that are a few levels away from a mask, with their expected losses."""

from typing import Protocol

import numpy as np
import numpy.typing as npt

from mqasearch.search_space import SearchSpace

Floats = npt.NDArray[np.float64]
Levels = npt.NDArray[np.int_]


class Quadratic(Protocol):
    """A loss that is a quadratic function of a mask's levels.

    It is ``Σ_l linear[l, level_l] + Σ_{l<j} pairs[l, j] roots[l, level_l] roots[j, level_j]``.
    """

    @property
    def linear(self) -> Floats:
        """``[n_layers, 1 + n_levels]``; 0 at level 0."""

    @property
    def roots(self) -> Floats:
        """``[n_layers, 1 + n_levels]``; 0 at level 0."""

    @property
    def pairs(self) -> Floats:
        """``[n_layers, n_layers]``; symmetric, 0 on the diagonal."""


def best_neighbours(
    space: SearchSpace, model: Quadratic, row: Levels, allowed: npt.NDArray[np.bool_], most: int
) -> tuple[Levels, Floats]:
    """The neighbours of a mask with the lowest expected losses, lowest first.

    They are the masks one switch away; and with several levels, every change of one layer that
    other layers make up for, because from some masks no switch leads to another one: if all layers
    have half of 8 heads, one that goes back loses more than another one can make up for.

    Args and Returns:
        as of :func:`best_switches`.
    """
    rows, added = best_switches(space, model, row, allowed, most)
    if space.n_levels == 1:
        return rows, added
    others = repaired_changes(space, model, row, allowed)
    loss = _expected(model, row[None])[0]
    together = np.vstack([rows, others])
    losses = np.concatenate([added, _expected(model, others) - loss])
    together, first = np.unique(together, axis=0, return_index=True)
    losses = losses[first]
    order = np.argsort(losses, kind="stable")[:most]
    return together[order], losses[order]


def _expected(model: Quadratic, rows: Levels) -> Floats:
    """``[k]`` expected losses of ``[k, n_layers]`` levels."""
    places = np.arange(rows.shape[1])
    roots = model.roots[places, rows]
    together = ((roots @ model.pairs) * roots).sum(axis=1) / 2
    losses: Floats = model.linear[places, rows].sum(axis=1) + together
    return losses


def repaired_changes(
    space: SearchSpace, model: Quadratic, row: Levels, allowed: npt.NDArray[np.bool_]
) -> Levels:
    """One mask for each other level of each layer, brought to the budget by steps of other layers.

    Each step is the one that costs least by the expected loss for what it saves, or gains most.
    Changes that no steps make up for are left out.

    Args:
        space: the search space.
        model: the expected loss.
        row: ``[n_layers]`` levels of a mask at the budget.
        allowed: ``[n_layers, 1 + n_levels]`` whether a layer may get a level.

    Returns:
        ``[k, n_layers]`` levels.
    """
    layers, levels = np.nonzero(allowed & (np.arange(allowed.shape[1]) != row[:, None]))
    places, number = np.arange(space.n_layers), np.arange(len(layers))
    rows = np.tile(row, (len(layers), 1))
    rows[number, layers] = levels
    is_free = np.full(rows.shape, True)
    is_free[number, layers] = False
    saved = np.array((0, *space.savings))
    higher, lower = _next_levels(allowed)
    for targets, is_forward in ((higher, True), (lower, False)):
        while True:
            slack = saved[rows].sum(axis=1) - space.least
            new = targets[places, rows]
            change = saved[np.maximum(new, 0)] - saved[rows]
            wanted = slack < 0 if is_forward else slack >= 0
            fits = is_free & (new >= 0) & wanted[:, None]
            if not is_forward:
                fits &= slack[:, None] + change >= 0
            moving = np.flatnonzero(fits.any(axis=1))
            if not len(moving):
                break
            roots = model.roots[places, rows]
            after = np.maximum(new, 0)
            costs = model.linear[places, after] - model.linear[places, rows]
            costs += (model.roots[places, after] - roots) * (roots @ model.pairs)
            costs = costs / np.maximum(change, 1) if is_forward else costs
            best = np.where(fits, costs, np.inf)[moving].argmin(axis=1)
            rows[moving, best] = new[moving, best]
    slack = saved[rows].sum(axis=1) - space.least
    back = np.array((np.iinfo(int).max, *space.steps))[rows].min(axis=1)
    return np.unique(rows[(slack >= 0) & (slack < back)], axis=0)


def _next_levels(allowed: npt.NDArray[np.bool_]) -> tuple[Levels, Levels]:
    """``[n_layers, 1 + n_levels]`` the next allowed level above and below each; −1 without one."""
    n_layers, n_choices = allowed.shape
    higher, lower = np.full((2, n_layers, n_choices), -1)
    for level in range(n_choices - 2, -1, -1):
        higher[:, level] = np.where(allowed[:, level + 1], level + 1, higher[:, level + 1])
    for level in range(1, n_choices):
        lower[:, level] = np.where(allowed[:, level - 1], level - 1, lower[:, level - 1])
    return higher, lower


def best_switches(
    space: SearchSpace, model: Quadratic, row: Levels, allowed: npt.NDArray[np.bool_], most: int
) -> tuple[Levels, Floats]:
    """The masks at the budget one switch away with the lowest expected losses, lowest first.

    A switch changes the level of one layer, or of two. The losses of all switches follow from the
    loss of the mask and one matrix, so that no mask needs to be made to be judged.

    Args:
        space: the search space.
        model: the expected loss.
        row: ``[n_layers]`` levels of a mask at the budget.
        allowed: ``[n_layers, 1 + n_levels]`` whether a layer may get a level.
        most: the most masks to return.

    Returns:
        ``[k, n_layers]`` levels, and ``[k]`` what each switch adds to the expected loss.
    """
    places = np.arange(space.n_layers)
    layers, levels = np.nonzero(allowed & (np.arange(allowed.shape[1]) != row[:, None]))
    saved = np.array((0, *space.savings))
    roots = model.roots[layers, levels] - model.roots[layers, row[layers]]
    field = model.pairs @ model.roots[places, row]
    added = model.linear[layers, levels] - model.linear[layers, row[layers]] + roots * field[layers]
    changes = saved[levels] - saved[row[layers]]
    slack = int(saved[row].sum()) - space.least

    one, two = np.triu_indices(len(layers), 1)
    is_pair = layers[one] != layers[two]
    one, two = one[is_pair], two[is_pair]
    singles = np.arange(len(layers)) if space.n_levels > 1 else np.arange(0)
    one, two = np.concatenate([one, singles]), np.concatenate([two, np.full(len(singles), -1)])
    has_two = two >= 0
    left = slack + changes[one] + np.where(has_two, changes[two], 0)
    fits = (left >= 0) & (left < max(space.steps))
    one, two, has_two, left = one[fits], two[fits], has_two[fits], left[fits]
    together = model.pairs[layers[one], layers[two]] * roots[one] * roots[two]
    losses = added[one] + np.where(has_two, added[two] + together, 0.0)

    counts = np.bincount(row, minlength=space.n_levels + 1)[None, :].repeat(len(one), axis=0)
    number = np.arange(len(one))
    for moved, is_used in ((one, np.full(len(one), True)), (two, has_two)):
        np.subtract.at(counts, (number[is_used], row[layers[moved[is_used]]]), 1)
        np.add.at(counts, (number[is_used], levels[moved[is_used]]), 1)
    steps = np.where(counts[:, 1:] > 0, np.array(space.steps), np.iinfo(int).max)
    is_at_budget = left < steps.min(axis=1)
    one, two, losses = one[is_at_budget], two[is_at_budget], losses[is_at_budget]

    first = np.argsort(losses, kind="stable")[:most]
    rows = np.tile(row, (len(first), 1))
    number = np.arange(len(first))
    rows[number, layers[one[first]]] = levels[one[first]]
    has_two = two[first] >= 0
    rows[number[has_two], layers[two[first][has_two]]] = levels[two[first][has_two]]
    return rows, losses[first]
