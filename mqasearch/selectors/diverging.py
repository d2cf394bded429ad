"""Layers that cannot be converted: if a layer has no score alone, no mask with it has one."""

from collections.abc import Sequence

from mqasearch.mask import LayerMask
from mqasearch.selectors.history import MaskTrial, taken

SUSPICION = 5
"""Number of consecutive invalid masks at the budget after which the layers are tried one by one."""


def diverging(history: Sequence[MaskTrial]) -> frozenset[int]:
    """The layers whose mask of one layer is invalid."""
    return frozenset(
        layer
        for trial in history
        if trial.state == "invalid" and trial.mask.n_converted == 1
        for layer in trial.mask.layers
    )


def suspect(history: Sequence[MaskTrial], n_layers: int, n_converted: int) -> LayerMask | None:
    """A layer to try alone if the masks at the budget do not tell which layers are at fault.

    With three of twelve layers at fault, only one in 220 random masks of nine layers has a score.

    Returns:
        The mask of the lowest untried layer; None while masks at the budget have scores, and once
        every layer was tried.
    """
    latest = [t for t in history if t.finished and t.mask.n_converted == n_converted][-SUSPICION:]
    if len(latest) < SUSPICION or any(trial.state != "invalid" for trial in latest):
        return None
    seen = taken(history)
    alone = (LayerMask.of([layer], n_layers) for layer in range(n_layers))
    return next((mask for mask in alone if mask not in seen), None)
