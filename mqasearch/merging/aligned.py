"""Heads are turned towards one another before they are merged, as far as that is free.

A map of a head is free if it leaves the layer's function as it is. Any invertible map of a head's
values is free, since the output projection takes it up. So is any invertible map of the key
dimensions without RoPE, one complex number per pair of dimensions with RoPE, and one sign per pair
if the keys have a norm. Within that freedom each merge is the best one in closed form for the
layer's input on calibration text. All sums are in float64.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mqasearch.errors import UserError
from mqasearch.families import AttentionWeights
from mqasearch.merging.aligned_keys import NormedKeys, RotaryKeys
from mqasearch.merging.aligned_subspace import Maps, Subspace
from mqasearch.merging.grouping import Groups, best_groups, permute_kv_heads
from mqasearch.merging.layer_statistics import LayerStatistics
from mqasearch.merging.merge import Merge
from mqasearch.merging.pooling import augmented, grouped


@dataclass(frozen=True, kw_only=True)
class Aligned(Merge):
    """Heads aligned on calibration text, then merged; W_O refitted unless refit is false.

    Attributes:
        refit: fit the output projection to the original layer's outputs afterwards.
        first_token: how often the first token of a text counts in the statistics. All other tokens
            see it, and trained heads give it a large share of their attention if no other token is
            of use (Xiao et al. 2023, "attention sinks"). Its key and its value therefore matter as
            much as those of many tokens.
    """

    name = "aligned"
    needs_statistics = True
    reads_statistics = True

    refit: bool = True
    first_token: float = 64.0

    def __post_init__(self) -> None:
        if not 0 <= self.first_token < math.inf:
            raise UserError(
                f"merge 'aligned': first_token must be 0 or more, not {self.first_token}"
            )

    def merge(
        self, weights: AttentionWeights, target: int, statistics: LayerStatistics | None
    ) -> AttentionWeights:
        assert statistics is not None
        weights = weights.to(dtype=torch.float64)
        alignment = Alignment(weights, statistics.moment(self.first_token))
        groups = alignment.groups(target)
        return alignment.merged(groups)

    def residual(
        self, weights: AttentionWeights, target: int, statistics: LayerStatistics
    ) -> float:
        """The part of a layer's logits and outputs that no map keeps; 0 = lossless, 2 = all lost.

        It estimates how much the layer suffers without running the model.
        """
        alignment = Alignment(weights.to(dtype=torch.float64), statistics.moment(self.first_token))
        return sum(alignment.error(group) for group in alignment.groups(target))


class Alignment:
    """One layer's merging problem; its statistics are computed once for all choices of groups."""

    def __init__(self, weights: AttentionWeights, moment: Tensor) -> None:
        """
        Args:
            weights: the layer, in float64.
            moment: [D + 1, D + 1] float64, E[x̃x̃ᵀ] with x̃ = (x, 1).
        """
        self._weights = weights
        self._mean = moment[:, -1]
        self._keys = augmented(weights.k, weights.k_bias)
        self._queries = augmented(weights.q, weights.q_bias)
        self._values_in = augmented(weights.v, weights.v_bias)
        # a constant in the values does not change the attention, and the output bias takes it up
        value_moment = moment if weights.o_bias is None else _centred(moment)
        self._values = Subspace(_gram(self._values_in, value_moment), _output_cost(weights))

        query_cost = _query_cost(weights, self._queries, moment)
        turning = weights.rope.rotary_dims
        self._normed = self._rotary = self._still = None
        if weights.has_qk_norm:
            self._normed = NormedKeys(_gram(self._keys, moment), query_cost, weights.rope)
            return
        if turning:
            self._rotary = RotaryKeys(_gram(self._keys, moment), query_cost, weights.rope)
        if turning < weights.head_dim:
            # softmax ignores what is constant over keys
            gram = _gram(self._keys[:, turning:], _centred(moment))
            self._still = Subspace(gram, query_cost[:, turning:, turning:])

    def groups(self, target: int) -> Groups:
        """The groups of KV heads that suffer least from being merged."""
        return best_groups(self._weights.n_kv_heads, target, self.error)

    def error(self, heads: Sequence[int]) -> float:
        """What merging these heads loses: share of the layer's logits plus share of its outputs."""
        parts = [part for part in (self._normed, self._rotary, self._still) if part is not None]
        logits = sum(part.total for part in parts)
        lost = sum(part.residual(heads) for part in parts)
        outputs = self._values.total
        return (lost / logits if logits > 0 else 0.0) + (
            self._values.residual(heads) / outputs if outputs > 0 else 0.0
        )

    def merged(self, groups: Groups) -> AttentionWeights:
        """The layer with one KV head per group; heads are permuted if the groups require it."""
        order = [head for group in groups for head in group]
        weights = permute_kv_heads(self._weights, order)
        keys = [self._key_maps(group) for group in groups]
        values = [self._values.maps(group) for group in groups]
        return replace(
            weights,
            **self._merged_keys(weights, order, keys),
            **self._merged_values(weights, order, values),
        )

    def _key_maps(self, heads: Sequence[int]) -> Maps:
        dims, turning = self._weights.head_dim, self._weights.rope.rotary_dims
        if self._normed is not None:
            return self._normed.maps(heads, dims)
        down = torch.zeros(len(heads), dims, dims, dtype=torch.float64)
        maps = Maps(down, torch.zeros_like(down))
        if self._rotary is not None:
            maps = self._rotary.maps(heads, dims)
        if self._still is not None:
            still = self._still.maps(heads)
            maps.down[:, turning:, turning:] = still.down
            maps.up[:, turning:, turning:] = still.up
        return maps

    def _merged_keys(
        self, weights: AttentionWeights, order: list[int], maps: list[Maps]
    ) -> dict[str, Any]:
        keys = _down(self._keys[order], maps)
        up = _of_queries(weights, maps)
        queries = up.transpose(-1, -2) @ augmented(weights.q, weights.q_bias)
        bias = keys[..., -1]
        if not weights.has_qk_norm:
            # dimensions without RoPE may be centred, which loses less in 16 bits
            still = slice(weights.rope.rotary_dims, None)
            bias = bias.clone()
            bias[:, still] = -(keys[:, still, :-1] @ self._mean[:-1])
        return {
            "k": keys[..., :-1],
            "q": queries[..., :-1],
            "k_bias": None if weights.k_bias is None else bias,
            "q_bias": None if weights.q_bias is None else queries[..., -1],
        }

    def _merged_values(
        self, weights: AttentionWeights, order: list[int], maps: list[Maps]
    ) -> dict[str, Any]:
        before, after = self._values_in[order], _down(self._values_in[order], maps)
        output = torch.einsum("Dha,hab->Dhb", weights.o, _of_queries(weights, maps))
        bias = weights.o_bias
        if bias is not None:
            # attention weights sum to 1, so what the mean value lost is the same at every token
            bias = bias + _constant(weights.o, before @ self._mean)
            bias = bias - _constant(output, after @ self._mean)
        return {
            "v": after[..., :-1],
            "o": output,
            "v_bias": None if weights.v_bias is None else after[..., -1],
            "o_bias": bias,
        }


def _centred(moment: Tensor) -> Tensor:
    """The moment of (x − E x, 0)."""
    return moment - moment[:, -1:] @ moment[-1:, :]


def _gram(heads: Tensor, moment: Tensor) -> Tensor:
    """[n, d, n, d]: E[z_s z_tᵀ] with z_s = heads_s x̃, for heads [n, d, D + 1]."""
    rows = heads.flatten(0, 1)
    return (rows @ moment @ rows.T).reshape(*heads.shape[:2], *heads.shape[:2])


def _query_cost(weights: AttentionWeights, queries: Tensor, moment: Tensor) -> Tensor:
    """[n, d, d]: Σ E[q qᵀ] over the query heads of each KV head."""
    per_query = queries @ moment @ queries.transpose(-1, -2)
    return grouped(per_query, weights.n_kv_heads).sum(dim=1)


def _output_cost(weights: AttentionWeights) -> Tensor:
    """[n, d, d]: Σ W_O^{hᵀ} W_O^h over the query heads of each KV head."""
    per_query = torch.einsum("Dha,Dhb->hab", weights.o, weights.o)
    return grouped(per_query, weights.n_kv_heads).sum(dim=1)


def _down(heads: Tensor, maps: list[Maps]) -> Tensor:
    """Merge heads [n, d, D + 1], ordered by group, into [m, d, D + 1]."""
    down = torch.stack([each.down for each in maps])
    return torch.einsum("mgab,mgbD->maD", down, grouped(heads, len(maps)))


def _of_queries(weights: AttentionWeights, maps: list[Maps]) -> Tensor:
    """[n_q, d, d]: for every query head, the map ``up`` of its KV head."""
    up = torch.cat([each.up for each in maps])
    return up.repeat_interleave(weights.n_heads // len(up), dim=0)


def _constant(output: Tensor, values: Tensor) -> Tensor:
    """[D]: the output that the projection [D, n_q, d] gives for constant values [n or m, d]."""
    of_query = values.repeat_interleave(output.shape[1] // len(values), dim=0)
    return torch.einsum("Dha,ha->D", output, of_query)
