"""All masks at the budget that are one switch away from a mask, with their expected losses."""

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
