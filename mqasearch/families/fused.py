"""Families that keep query, key and value in one linear module; each has an order of its own."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mqasearch.families.family import Family
from mqasearch.families.weights import NO_ROPE, AttentionWeights, RopeLayout


class Phi3Family(Family):
    """Phi-3: rows of ``qkv_proj`` are all query heads, all key heads, all value heads. No biases.

    RoPE turns the first dimensions of a head, a share of ``partial_rotary_factor``. The layout
    allows fewer KV heads than query heads.
    """

    def __init__(self) -> None:
        super().__init__(
            ("phi3",),
            blocks_path="layers",
            attention_path="self_attn",
            projections=("qkv_proj", "o_proj"),
        )

    def unpack(self, attention: nn.Module, parameters: Mapping[str, Tensor]) -> AttentionWeights:
        head_dim: int = attention.head_dim  # type: ignore[assignment]
        n_heads: int = attention.config.num_attention_heads  # type: ignore[union-attr, assignment]
        fused, output = parameters["qkv_proj.weight"], parameters["o_proj.weight"]
        heads = fused.view(-1, head_dim, fused.shape[1])
        n_kv_heads = (len(heads) - n_heads) // 2
        q, k, v = torch.split(heads, [n_heads, n_kv_heads, n_kv_heads])
        return AttentionWeights(
            q=q,
            k=k,
            v=v,
            o=output.view(output.shape[0], n_heads, head_dim),
            rope=RopeLayout("half", _rotary_dims(attention, head_dim)),
        )

    def pack(self, weights: AttentionWeights) -> dict[str, Tensor]:
        fused = torch.cat([weights.q, weights.k, weights.v]).flatten(0, 1)
        return _with_biases(weights, fused, None, "qkv_proj", "o_proj")


class GPTNeoXFamily(Family):
    """GPT-NeoX, Pythia: rows of ``query_key_value`` are [q, k, v] of head 0, then of head 1, ….

    The layout has as many KV heads as query heads. RoPE turns the first dimensions of a head.
    """

    def __init__(self) -> None:
        super().__init__(
            ("gpt_neox",),
            blocks_path="layers",
            attention_path="attention",
            projections=("query_key_value", "dense"),
        )

    def unpack(self, attention: nn.Module, parameters: Mapping[str, Tensor]) -> AttentionWeights:
        head_dim: int = attention.head_size  # type: ignore[assignment]
        fused, output = parameters["query_key_value.weight"], parameters["dense.weight"]
        q, k, v = fused.view(-1, 3, head_dim, fused.shape[1]).unbind(1)
        bias = parameters.get("query_key_value.bias")
        q_bias, k_bias, v_bias = (
            (None, None, None) if bias is None else bias.view(-1, 3, head_dim).unbind(1)
        )
        return AttentionWeights(
            q=q,
            k=k,
            v=v,
            o=output.view(output.shape[0], -1, head_dim),
            q_bias=q_bias,
            k_bias=k_bias,
            v_bias=v_bias,
            o_bias=parameters.get("dense.bias"),
            rope=RopeLayout("half", _rotary_dims(attention, head_dim)),
        )

    def pack(self, weights: AttentionWeights) -> dict[str, Tensor]:
        _require_one_kv_head_per_query_head(weights, "GPT-NeoX")
        fused = torch.stack([weights.q, weights.k, weights.v], dim=1).flatten(0, 2)
        biases = _biases(weights)
        bias = None if biases is None else torch.stack(biases, dim=1).flatten()
        return _with_biases(weights, fused, bias, "query_key_value", "dense")

    def pack_compact(self, weights: AttentionWeights) -> dict[str, Tensor]:
        """Rows of ``query_key_value`` are all query heads, all key heads, all value heads."""
        fused = torch.cat([weights.q, weights.k, weights.v]).flatten(0, 1)
        biases = _biases(weights)
        bias = None if biases is None else torch.cat(biases).flatten()
        return _with_biases(weights, fused, bias, "query_key_value", "dense")


class GPT2Family(Family):
    """GPT-2: ``c_attn`` and ``c_proj`` are Conv1D, weight [in, out]; columns of ``c_attn`` are all
    query heads, all key heads, all value heads.

    Positions are added to the input. The stock layout has as many KV heads as query heads.
    """

    def __init__(self) -> None:
        super().__init__(
            ("gpt2",), blocks_path="h", attention_path="attn", projections=("c_attn", "c_proj")
        )

    def unpack(self, attention: nn.Module, parameters: Mapping[str, Tensor]) -> AttentionWeights:
        head_dim: int = attention.head_dim  # type: ignore[assignment]
        n_heads: int = attention.num_heads  # type: ignore[assignment]
        heads = torch.unflatten(parameters["c_attn.weight"].T, 0, (-1, head_dim))
        biases = parameters["c_attn.bias"].view(-1, head_dim)
        n_kv_heads = (len(heads) - n_heads) // 2
        counts = [n_heads, n_kv_heads, n_kv_heads]
        q, k, v = torch.split(heads, counts)
        q_bias, k_bias, v_bias = torch.split(biases, counts)
        return AttentionWeights(
            q=q,
            k=k,
            v=v,
            o=torch.unflatten(parameters["c_proj.weight"].T, 1, (n_heads, head_dim)),
            q_bias=q_bias,
            k_bias=k_bias,
            v_bias=v_bias,
            o_bias=parameters["c_proj.bias"],
            rope=NO_ROPE,
        )

    def pack(self, weights: AttentionWeights) -> dict[str, Tensor]:
        biases = _biases(weights)
        if biases is None or weights.o_bias is None:
            raise ValueError("GPT-2 has biases everywhere; these weights have none")
        return {
            "c_attn.weight": torch.cat([weights.q, weights.k, weights.v]).flatten(0, 1).T,
            "c_attn.bias": torch.cat(biases).flatten(),
            "c_proj.weight": weights.o.flatten(1, 2).T,
            "c_proj.bias": weights.o_bias,
        }


def _rotary_dims(attention: nn.Module, head_dim: int) -> int:
    # transformers rounds in the same way: int() of the product
    parameters: Mapping[str, float] = attention.config.rope_parameters  # type: ignore[union-attr, assignment]
    return int(head_dim * parameters.get("partial_rotary_factor", 1.0))


def _require_one_kv_head_per_query_head(weights: AttentionWeights, name: str) -> None:
    if weights.n_kv_heads != weights.n_heads:
        raise ValueError(
            f"{name} stores one KV head per query head ({weights.n_heads}), "
            f"not {weights.n_kv_heads}: replicate first"
        )


def _biases(weights: AttentionWeights) -> tuple[Tensor, Tensor, Tensor] | None:
    if weights.q_bias is None or weights.k_bias is None or weights.v_bias is None:
        return None
    return weights.q_bias, weights.k_bias, weights.v_bias


def _with_biases(
    weights: AttentionWeights, fused: Tensor, bias: Tensor | None, qkv: str, output: str
) -> dict[str, Tensor]:
    packed = {f"{qkv}.weight": fused, f"{output}.weight": weights.o.flatten(1, 2)}
    if bias is not None:
        packed[f"{qkv}.bias"] = bias
    if weights.o_bias is not None:
        packed[f"{output}.bias"] = weights.o_bias
    return packed
