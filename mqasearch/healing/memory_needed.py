"""The memory that a healing will need, computed before it starts."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from mqasearch.errors import UserError
from mqasearch.families import AttentionWeights, Family
from mqasearch.forward import free_bytes
from mqasearch.healing.divergence import rows_at_once
from mqasearch.healing.text import HealingText

_MASTER_BYTES = 4 * 5
"""Bytes per trained number: itself, the best so far, its gradient, and two moments of Adam."""
_LOGITS_BYTES = 4 * 5
"""Bytes per logit: both models' logits, their log-probabilities, and the gradient."""
_SHARE = 0.5
"""Share of the free memory that training may take before activations are computed twice instead."""


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes of memory by their use.

    Attributes:
        weights: trained weights, their gradients and the optimiser's state.
        teacher: the original's states, in the CPU's memory.
        activations: activations kept for the backward pass of a batch.
        checkpointed: the same if blocks are computed twice.
        logits: logits of the tokens that go through the head together.
    """

    weights: int
    teacher: int
    activations: int
    checkpointed: int
    logits: int

    def on_device(self, *, checkpointing: bool) -> int:
        """Bytes at the peak on the model's device, without the model itself."""
        activations = self.checkpointed if checkpointing else self.activations
        return self.weights + activations + self.logits


def need(
    model: PreTrainedModel,
    family: Family,
    merged: Mapping[int, AttentionWeights],
    text: HealingText,
) -> Need:
    """The memory that healing these layers needs, computed from sizes; nothing is run."""
    itemsize = model.dtype.itemsize
    blocks = family.blocks(model)[min(merged) :]
    hidden = next(iter(merged.values())).hidden_size
    tensors = [each for weights in merged.values() for each in weights.tensors().values()]
    numbers = sum(map(torch.Tensor.numel, tensors))
    padded = [batch.tokens.numel() for batch in (*text.training, *text.held_out)]
    longest = max(batch.tokens.shape[1] for batch in text.training)
    n_boundaries = 2 if min(merged) else 1
    per_block = _kept_per_token(model, blocks[0], longest) * max(padded)
    states = hidden * itemsize * max(padded)
    vocabulary = int(model.config.vocab_size)
    return Need(
        weights=numbers * (_MASTER_BYTES + 2 * itemsize),
        teacher=n_boundaries * hidden * itemsize * sum(padded),
        activations=per_block * len(blocks),
        checkpointed=states * len(blocks) + per_block,
        logits=_LOGITS_BYTES * vocabulary * rows_at_once(model.device, vocabulary),
    )


def _kept_per_token(model: PreTrainedModel, block: nn.Module, longest: int) -> int:
    """Bytes per token and block: each projection's input and output, eager attention's weights."""
    numbers = sum(sum(each.shape) for each in block.parameters() if each.ndim == 2)
    if model.config._attn_implementation == "eager":
        numbers += 3 * int(model.config.num_attention_heads) * longest
    return numbers * model.dtype.itemsize


def wants_checkpointing(needed: Need, device: torch.device) -> bool:
    """Whether activations must be computed twice to save memory.

    Raises:
        UserError: the memory is too small even then.
    """
    free, free_on_cpu = free_bytes(device), free_bytes(torch.device("cpu"))
    least = needed.on_device(checkpointing=True)
    whole = least + needed.teacher if device.type == "cpu" else least
    if whole > free or needed.teacher > free_on_cpu:
        raise UserError(
            f"healing these layers takes about {whole / 1e9:.1f} GB of memory on {device}"
            + ("" if device.type == "cpu" else f" and {needed.teacher / 1e9:.1f} GB on the CPU")
            + f" besides the model; {free / 1e9:.1f} GB are free: give less text (--heal-tokens, "
            "heal.tokens in a study), convert fewer layers, or take another --device"
        )
    return needed.on_device(checkpointing=False) > _SHARE * free
