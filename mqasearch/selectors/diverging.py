"""Levels that cannot be scored: if a layer has no score alone, no mask with it has one."""

from collections.abc import Sequence

from mqasearch.mask import LayerMask
from mqasearch.search_space import SearchSpace
from mqasearch.selectors.history import MaskTrial, taken
from mqasearch.selectors.masks_of_size import Level

SUSPICION = 5
"""Number of consecutive invalid masks at the budget after which the layers are tried one by one."""


def diverging(history: Sequence[MaskTrial]) -> frozenset[Level]:
    """The levels of layers whose mask of that layer alone is invalid."""
    return frozenset(
        (layer, trial.mask.levels[layer])
        for trial in history
        if trial.state == "invalid" and trial.mask.n_converted == 1
        for layer in trial.mask.layers
    )


def suspect(history: Sequence[MaskTrial], space: SearchSpace) -> LayerMask | None:
    """A layer to try alone if the masks at the budget do not tell which layers are at fault.

    With three of twelve layers at fault, only one in 220 random masks of nine layers has a score.

    Returns:
        The first untried mask of ``space.alone()``; None while masks at the budget have scores, and
        once every layer was tried.
    """
    latest = [t for t in history if t.finished and space.is_at_budget(t.mask)][-SUSPICION:]
    if len(latest) < SUSPICION or any(trial.state != "invalid" for trial in latest):
        return None
    seen = taken(history)
    return next((mask for mask in space.alone() if mask not in seen), None)
