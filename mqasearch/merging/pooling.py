"""Merges that take a KV head as it is, or average several; no head is turned or refitted.

``mean`` is the method of the GQA paper (Ainslie et al., 2023, arXiv:2305.13245, section 2.1) and
the baseline of everything else.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mqasearch.families import AttentionWeights
from mqasearch.merging.layer_statistics import LayerStatistics
from mqasearch.merging.merge import Merge


@dataclass(frozen=True, kw_only=True)
class Mean(Merge):
    """The average of the heads of a group."""

    name = "mean"

    def merge(
        self, weights: AttentionWeights, target: int, statistics: LayerStatistics | None
    ) -> AttentionWeights:
        def pool(tensor: Tensor) -> Tensor:
            return grouped(tensor.double(), target).mean(dim=1)

        return replace(
            weights,
            k=pool(weights.k),
            v=pool(weights.v),
            k_bias=None if weights.k_bias is None else pool(weights.k_bias),
            v_bias=None if weights.v_bias is None else pool(weights.v_bias),
        )


@dataclass(frozen=True, kw_only=True)
class First(Merge):
    """The first head of a group."""

    name = "first"

    def merge(
        self, weights: AttentionWeights, target: int, statistics: LayerStatistics | None
    ) -> AttentionWeights:
        return select_kv_heads(weights, range(0, weights.n_kv_heads, weights.n_kv_heads // target))


@dataclass(frozen=True, kw_only=True)
class Best(Merge):
    """The head of a group that stands in for the others with the least error.

    The error of keeping head j is the relative error of the attention logits with its keys, plus
    the relative error of the output with its values (``replacement_errors``). Without calibration
    the layer's input is taken to be white noise, so that only weights and biases count.
    """

    name = "best"
    reads_statistics = True

    def merge(
        self, weights: AttentionWeights, target: int, statistics: LayerStatistics | None
    ) -> AttentionWeights:
        moment = None if statistics is None else statistics.x_moment
        errors = replacement_errors(weights, moment)
        size = weights.n_kv_heads // target
        chosen = []
        for start in range(0, weights.n_kv_heads, size):
            within = errors[start : start + size, start : start + size]
            chosen.append(start + int(within.sum(dim=0).argmin()))
        return select_kv_heads(weights, chosen)


def grouped(tensor: Tensor, target: int) -> Tensor:
    """[n, …] → [target, n / target, …]: contiguous groups, each of which becomes one head."""
    return tensor.reshape(target, -1, *tensor.shape[1:])


def select_kv_heads(weights: AttentionWeights, heads: range | list[int]) -> AttentionWeights:
    """The layer with only these KV heads."""
    index = torch.tensor(list(heads))
    return replace(
        weights,
        k=weights.k[index],
        v=weights.v[index],
        k_bias=None if weights.k_bias is None else weights.k_bias[index],
        v_bias=None if weights.v_bias is None else weights.v_bias[index],
    )


def replacement_errors(weights: AttentionWeights, x_moment: Tensor | None) -> Tensor:
    """[n, n] float64: error of replacing KV head s (row) by KV head j (column).

    With the second moment of x̃ = (x, 1), the error of keys is E|q_hᵀ(k_s − k_j)|² over the query
    heads h of s, and that of values is E|Σ_h W_O^h (v_s − v_j)|². Each is divided by the same sum
    over the original heads, so that the two can be added. For a pair of dimensions with RoPE only
    the pair's query energy counts (its phase averages out over positions). In dimensions without
    RoPE, keys are centred, since softmax ignores what is constant over keys. A QK norm is not taken
    into account.

    Args:
        weights: the layer.
        x_moment: [D + 1, D + 1], or None for white noise of mean zero.
    """
    if x_moment is None:
        x_moment = torch.eye(weights.hidden_size + 1, dtype=torch.float64)
    moment = x_moment.double()
    keys = augmented(weights.k, weights.k_bias)
    values = augmented(weights.v, weights.v_bias)
    centred = moment - moment[:, -1:] @ moment[-1:, :]
    turning = torch.zeros(weights.head_dim, dtype=torch.bool)
    turning[: weights.rope.rotary_dims] = True
    key_gram = _gram(keys, moment, turning) + _gram(keys, centred, ~turning)
    value_gram = _gram(values, moment, torch.ones_like(turning))
    return _relative_errors(key_gram, _query_weights(weights, moment)) + _relative_errors(
        value_gram, _output_weights(weights)
    )


def augmented(weight: Tensor, bias: Tensor | None) -> Tensor:
    """Weight [heads, d, D] and bias [heads, d] as one [heads, d, D + 1], to act on x̃ = (x, 1)."""
    column = weight.new_zeros(weight.shape[:2]) if bias is None else bias
    return torch.cat([weight, column[..., None]], dim=-1).double()


def _gram(heads: Tensor, moment: Tensor, dims: Tensor) -> Tensor:
    """[n, n, d, d]: E[z_s z_jᵀ] with z = head(x̃), zero in dimensions not flagged in ``dims``."""
    kept = (heads * dims[None, :, None]).flatten(0, 1)
    gram = kept @ moment @ kept.T
    n, d = heads.shape[:2]
    return gram.reshape(n, d, n, d).transpose(1, 2)


def _query_weights(weights: AttentionWeights, moment: Tensor) -> Tensor:
    """[n, d, d]: what an error of a key dimension costs in the logits of the head's queries."""
    queries = augmented(weights.q, weights.q_bias)
    per_query = queries @ moment @ queries.transpose(-1, -2)
    cost = grouped(per_query, weights.n_kv_heads).sum(dim=1)
    turned = torch.zeros_like(cost)
    still = weights.rope.rotary_dims
    turned[:, still:, still:] = cost[:, still:, still:]
    for real, imaginary in weights.rope.pairs:
        energy = (cost[:, real, real] + cost[:, imaginary, imaginary]) / 2
        turned[:, real, real] = turned[:, imaginary, imaginary] = energy
    return turned


def _output_weights(weights: AttentionWeights) -> Tensor:
    """[n, d, d]: Σ_h W_O^{hᵀ} W_O^h over the query heads of each KV head."""
    output = weights.o.double()
    per_query = torch.einsum("Dha,Dhb->hab", output, output)
    return grouped(per_query, weights.n_kv_heads).sum(dim=1)


def _relative_errors(gram: Tensor, cost: Tensor) -> Tensor:
    """[n, n]: tr(cost_s · E(z_s − z_j)(z_s − z_j)ᵀ) / Σ_s tr(cost_s · E z_s z_sᵀ)."""
    own = torch.diagonal(gram).movedim(-1, 0)  # [n, d, d]
    difference = own[:, None] + own[None, :] - gram - gram.transpose(-1, -2)
    error = torch.einsum("sab,sjba->sj", cost, difference)
    size = torch.einsum("sab,sba->", cost, own)
    return error / size if size > 0 else error
