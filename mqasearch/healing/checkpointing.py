"""Activation checkpointing: a block's activations are computed again when gradients need them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint


@contextmanager
def checkpointed(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Within the block of code, only the states between blocks are kept for the backward pass.

    transformers' own switch for this works only in training mode, which would turn dropout on.

    Args:
        blocks: blocks whose ``forward`` is the class's own, not replaced on the instance.
    """
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward
