"""Layers that cannot be converted: one that has no score alone spoils every mask with it."""

from collections.abc import Sequence

from mqasearch.mask import LayerMask
from mqasearch.selectors.history import MaskTrial, taken

SUSPICION = 5
"""Invalid masks at the budget in a row after which the layers are tried one by one."""


def diverging(history: Sequence[MaskTrial]) -> frozenset[int]:
    """The layers whose mask of one layer is invalid."""
    return frozenset(
        layer
        for trial in history
        if trial.state == "invalid" and trial.mask.n_converted == 1
        for layer in trial.mask.layers
    )


def suspect(history: Sequence[MaskTrial], n_layers: int, n_converted: int) -> LayerMask | None:
    """A layer to try alone, where the masks at the budget do not tell which layers are at fault.

    With three of twelve layers at fault, one random mask of nine layers in 220 can be scored.

    Returns:
        The lowest untried layer; None while masks at the budget have scores, and after the last.
    """
    latest = [t for t in history if t.finished and t.mask.n_converted == n_converted][-SUSPICION:]
    if len(latest) < SUSPICION or any(trial.state != "invalid" for trial in latest):
        return None
    seen = taken(history)
    alone = (LayerMask.of([layer], n_layers) for layer in range(n_layers))
    return next((mask for mask in alone if mask not in seen), None)
