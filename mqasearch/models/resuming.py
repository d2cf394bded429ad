"""Run a stock model from the middle, to the middle, or only its end.

The blocks' ``forward`` is replaced during one call, and the stock forward pass of the whole model
does the rest: embeddings, rotary tables, masks, final norm, head and all else that a family has. So
nothing here depends on a family.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

States = dict[int, Tensor]
"""Boundary → hidden states [rows, length, hidden] there; boundary ``l`` is before block ``l``."""


class ResumableModel:
    """A model that can start at any boundary between its blocks, and return the states there.

    Attributes:
        layer_tokens: tokens run so far, padding included, times the layers that they went through.
    """

    def __init__(self, model: PreTrainedModel, blocks: Sequence[nn.Module]) -> None:
        """
        Args:
            model: a causal language model; its weights may be swapped between calls.
            blocks: the model's decoder layers. The first argument of each is the hidden states, and
                it returns hidden states.
        """
        self.model = model
        self.blocks = tuple(blocks)
        self.layer_tokens = 0

    @property
    def n_layers(self) -> int:
        """Number of blocks, and the last boundary."""
        return len(self.blocks)

    @torch.inference_mode()
    def states(
        self,
        tokens: Tensor,
        *,
        positions: Tensor | None = None,
        visible: Tensor | None = None,
        start: int = 0,
        hidden: Tensor | None = None,
        wanted: Collection[int] = (),
    ) -> States:
        """Run blocks ``start`` to the last and return the states at the wanted boundaries.

        Args:
            tokens: [rows, length] token ids.
            positions: [rows, length]; None = counted along the row.
            visible: [rows, 1, length, length] bool, True if a token (second to last axis) attends
                to another (last axis); None = causal.
            start: boundary to start at.
            hidden: the states there, unless ``start`` is 0.
            wanted: boundaries after ``start``; the model's last one is always returned.
        """
        return self.run(
            tokens,
            positions=positions,
            visible=visible,
            start=start,
            hidden=hidden,
            wanted={*wanted, self.n_layers},
        )

    def run(
        self,
        tokens: Tensor,
        *,
        positions: Tensor | None = None,
        visible: Tensor | None = None,
        start: int = 0,
        hidden: Tensor | None = None,
        wanted: Collection[int],
    ) -> States:
        """``states`` at the wanted boundaries alone; gradients are kept if they are on.

        Blocks after the last wanted boundary are not run.
        """
        end = max(wanted)
        if start == end:
            assert hidden is not None
            return {start: hidden}
        found: States = {}
        inputs: dict[str, Any] = {"input_ids": tokens, "use_cache": False}
        if visible is not None:
            dtype = self.model.dtype
            bias = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
            inputs["attention_mask"] = bias.masked_fill_(~visible, torch.finfo(dtype).min)
            inputs["position_ids"] = positions
        with _replaced(self.blocks, start, end, hidden, wanted, found):
            self.model.base_model(**inputs)
        self.layer_tokens += tokens.numel() * (end - start)
        return found

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """``head`` without gradients."""
        return self.head(hidden)

    def head(self, hidden: Tensor) -> Tensor:
        """Final norm and head on single tokens: [n, hidden] after the last block → [n, vocabulary].

        The model runs on n sequences of one token, and its blocks return the states given here.
        """
        tokens = torch.zeros(len(hidden), 1, dtype=torch.long, device=hidden.device)
        with _replaced(self.blocks, self.n_layers, self.n_layers, hidden[:, None], (), {}):
            logits: Tensor = self.model(input_ids=tokens, use_cache=False).logits[:, 0]
        return logits


@contextmanager
def _replaced(
    blocks: Sequence[nn.Module],
    start: int,
    end: int,
    hidden: Tensor | None,
    wanted: Collection[int],
    found: States,
) -> Iterator[None]:
    """Replace the blocks' ``forward`` within the block of code.

    Blocks before ``start`` return ``hidden``. Blocks between ``start`` and ``end`` run, and record
    their output in ``found`` if a wanted boundary is after them. Blocks from ``end`` on return
    their input.
    """
    before = [block.__dict__.get("forward") for block in blocks]
    try:
        for number, block in enumerate(blocks):
            if number < start:
                assert hidden is not None
                block.forward = _handing_out(hidden)
            elif number >= end:
                block.forward = _passing_on
            elif number + 1 in wanted:
                block.forward = _recording(block.forward, number + 1, found)
        yield
    finally:
        for block, forward in zip(blocks, before, strict=True):
            block.__dict__.pop("forward", None)
            if forward is not None:
                block.forward = forward


def _handing_out(hidden: Tensor) -> Callable[..., Tensor]:
    def forward(*_: Any, **__: Any) -> Tensor:
        return hidden

    return forward


def _passing_on(hidden: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden


def _recording(
    forward: Callable[..., Tensor], boundary: int, found: States
) -> Callable[..., Tensor]:
    def recorded(*arguments: Any, **options: Any) -> Tensor:
        output = forward(*arguments, **options)
        found[boundary] = output
        return output

    return recorded
