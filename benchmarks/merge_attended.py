"""Moments weighted by the attention that each token receives, and an alignment that reads them."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mqasearch.conversion import calibration_batches, run_base
from mqasearch.families import AttentionWeights, Family
from mqasearch.merging import Alignment, RotaryKeys, Subspace, augmented, grouped


class AttendedAlignment(Alignment):
    """``Alignment`` with separate moments for keys and for values."""

    def __init__(
        self, weights: AttentionWeights, moment: Tensor, of_keys: Tensor, of_values: Tensor
    ) -> None:
        super().__init__(weights, of_values)
        queries = augmented(weights.q, weights.q_bias)
        cost = queries @ moment @ queries.transpose(-1, -2)
        cost = grouped(cost, weights.n_kv_heads).sum(dim=1)
        keys = augmented(weights.k, weights.k_bias)
        turning = weights.rope.rotary_dims
        if weights.has_qk_norm:
            raise SystemExit("attended: not for models with a norm on queries and keys")
        if turning:
            self._rotary = RotaryKeys(_gram(keys, of_keys), cost, weights.rope)
        if turning < weights.head_dim:
            centred = of_keys - of_keys[:, -1:] @ of_keys[-1:, :]
            gram = _gram(keys[:, turning:], centred)
            self._still = Subspace(gram, cost[:, turning:, turning:])


@dataclass
class ReceivedMoments:
    """Sums of w x̃x̃ᵀ over one layer's inputs x̃ = (x, 1); w is the attention a token receives.

    Attributes:
        first, later: the sums over position 0 and over all other positions. Their last entry is the
            sum of w.
    """

    real: Tensor | None = None
    first: Tensor | float = 0.0
    later: Tensor | float = 0.0
    _inputs: list[Tensor] = field(default_factory=list)

    def before_projection(self, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._inputs.append(args[0])

    def behind_attention(self, _: nn.Module, __: Any, output: tuple[Tensor, ...]) -> None:
        assert self.real is not None
        probabilities = output[1]  # [rows, query heads, length, length]
        asking = self.real[:, None, :].to(probabilities.dtype)
        received = (asking @ probabilities.mean(1))[:, 0].float()
        x = self._inputs.pop().float()
        first = torch.zeros_like(self.real)
        first[:, 0] = True
        self.first = self.first + _weighted(x, received, self.real & first)
        self.later = self.later + _weighted(x, received, self.real & ~first)

    def moment(self, count_first: bool) -> Tensor:
        total = self.first + self.later if count_first else self.later
        assert isinstance(total, Tensor)
        return total / total[-1, -1]


def received_moments(
    model: PreTrainedModel, family: Family, text: Sequence[Sequence[int]]
) -> list[ReceivedMoments]:
    """The moments of every layer, from one pass of the original model with eager attention.

    Memory: two float64 [D, D] per layer, and the probabilities of one layer and batch at a time.
    """
    attentions = [family.attention(block) for block in family.blocks(model)]
    sums = [ReceivedMoments() for _ in attentions]
    usual = model.config._attn_implementation
    with ExitStack() as stack:
        model.set_attn_implementation("eager")
        stack.callback(model.set_attn_implementation, usual)
        for attention, each in zip(attentions, sums, strict=True):
            reads = family.input_projection(attention)
            hook = reads.register_forward_pre_hook(each.before_projection)
            stack.callback(hook.remove)
            stack.callback(attention.register_forward_hook(each.behind_attention).remove)
        for batch in calibration_batches(model, text, None):
            for each in sums:
                each.real = batch.real
            run_base(model, batch.tokens)
    return sums


def _gram(heads: Tensor, moment: Tensor) -> Tensor:
    """[n, d, n, d]: E[z_s z_tᵀ], with z_s = heads_s x̃ and ``heads`` [n, d, D + 1]."""
    rows = heads.flatten(0, 1)
    return (rows @ moment @ rows.T).reshape(*heads.shape[:2], *heads.shape[:2])


def _weighted(x: Tensor, weight: Tensor, chosen: Tensor) -> Tensor:
    """[D + 1, D + 1]: Σ w x̃x̃ᵀ over the chosen tokens."""
    tokens = x[chosen]
    tokens = torch.cat([tokens, tokens.new_ones(len(tokens), 1)], dim=1)
    return (tokens.T @ (tokens * weight[chosen][:, None])).to("cpu", torch.float64)
