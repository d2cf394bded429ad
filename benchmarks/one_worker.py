"""A search by one worker, with nothing but a selector and a loss."""

from collections.abc import Callable, Iterator, Sequence

from mqasearch.mask import LayerMask
from mqasearch.selectors import History, MaskState, MaskTrial, Selector


def trials_of(
    selector: Selector,
    loss: Callable[[LayerMask], float],
    *,
    enqueued: Sequence[LayerMask] = (),
    pick: Callable[[Sequence[LayerMask]], LayerMask] = lambda masks: masks[0],
) -> Iterator[MaskTrial]:
    """Each trial as it is finished, until the selector wants no more.

    Args:
        selector: proposes masks.
        loss: returns the loss of a mask.
        enqueued: masks that are scored first.
        pick: chooses among masks that are equally wanted.
    """
    known: list[MaskTrial] = []
    waiting = [*enqueued]
    while masks := waiting[:1] or selector.wants(History(known)).masks:
        mask = waiting.pop(0) if waiting else pick(masks)
        state: MaskState = "complete" if selector.space.is_at_budget(mask) else "pruned"
        known.append(MaskTrial(len(known), mask, state, loss(mask)))
        yield known[-1]
