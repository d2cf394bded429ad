"""Changes of the weights that must not change a logit (merging.md, laws 3, 6, 7 and 9)."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from mqasearch.families import AttentionWeights, family_of
from tests.tiny import GROUPED, HEAD_DIM, MODEL_TYPES, N_HEADS, logits, tiny_model, tiny_tokens

CLOSE: dict[str, Any] = {"atol": 1e-4, "rtol": 1e-4}
WITH_BIAS = ("qwen2", "qwen3", "opt", "gpt_neox", "gpt2")

seeds = st.integers(0, 2**31)
a_few = settings(max_examples=5, deadline=None, derandomize=True)


def rewrite(model: PreTrainedModel, change: Any) -> None:
    """Put ``change(weights)`` into every layer."""
    family = family_of(model.config.model_type)
    for block in family.blocks(model):
        attention = family.attention(block)
        family.write(attention, change(family.read(attention).to(device="cpu")))


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def well_conditioned(seed: int, n: int, d: int) -> Tensor:
    """[n, d, d] invertible: rotations with singular values from 0.5 to 2."""
    u, _, v = torch.linalg.svd(random(seed, n, d, d))
    return u @ torch.diag(torch.linspace(0.5, 2.0, d)) @ v


def turn_values(weights: AttentionWeights, maps: Tensor) -> AttentionWeights:
    """v_s → T_s⁻¹ v_s, W_O^h → W_O^h T_s(h)."""
    inverse = torch.linalg.inv(maps)
    of_query = maps.repeat_interleave(weights.n_heads // weights.n_kv_heads, dim=0)
    bias = weights.v_bias
    return replace(
        weights,
        v=inverse @ weights.v,
        v_bias=None if bias is None else torch.einsum("sab,sb->sa", inverse, bias),
        o=torch.einsum("Dha,hab->Dhb", weights.o, of_query),
    )


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@given(seed=seeds)
@a_few
def test_any_invertible_map_of_the_values_is_free(model_type: str, seed: int) -> None:
    n_kv_heads = 2 if model_type in GROUPED else N_HEADS
    model, tokens = tiny_model(model_type, n_kv_heads=n_kv_heads), tiny_tokens()
    before = logits(model, tokens)
    maps = well_conditioned(seed, n_kv_heads, HEAD_DIM)

    rewrite(model, lambda weights: turn_values(weights, maps))

    torch.testing.assert_close(logits(model, tokens), before, **CLOSE)


@pytest.mark.parametrize("model_type", ["gpt2", "opt"])
@given(seed=seeds)
@a_few
def test_a_constant_in_the_key_bias_changes_nothing_without_rope(
    model_type: str, seed: int
) -> None:
    model, tokens = tiny_model(model_type), tiny_tokens()
    before = logits(model, tokens)

    def shift(weights: AttentionWeights) -> AttentionWeights:
        assert weights.k_bias is not None
        return replace(weights, k_bias=weights.k_bias + random(seed, N_HEADS, HEAD_DIM))

    rewrite(model, shift)

    torch.testing.assert_close(logits(model, tokens), before, **CLOSE)


@pytest.mark.parametrize("model_type", ["qwen2", "gpt_neox"])
def test_a_constant_in_the_key_bias_does_change_something_under_rope(model_type: str) -> None:
    model, tokens = tiny_model(model_type), tiny_tokens()
    before = logits(model, tokens)
    rewrite(model, lambda weights: replace(weights, k_bias=weights.k_bias + 1))
    assert (logits(model, tokens) - before).abs().max() > 1e-2


@pytest.mark.parametrize("model_type", WITH_BIAS)
@pytest.mark.parametrize("name", ["q_bias", "v_bias", "o_bias"])
def test_biases_are_carried(model_type: str, name: str) -> None:
    """Law 7: each bias that a family has is written, read back, and felt by the model."""
    model, tokens = tiny_model(model_type), tiny_tokens()
    family = family_of(model_type)
    attention = family.attention(family.blocks(model)[0])
    weights = family.read(attention).to(device="cpu")
    bias = getattr(weights, name)
    if bias is None:
        assert (model_type, name) == ("qwen2", "o_bias")
        return
    before = logits(model, tokens)
    other = bias + random(0, *bias.shape)  # a constant would be lost in the next layer norm

    family.write(attention, replace(weights, **{name: other}))

    torch.testing.assert_close(getattr(family.read(attention), name).cpu(), other)
    assert (logits(model, tokens) - before).abs().max() > 1e-3


@pytest.mark.parametrize("model_type", GROUPED)
@pytest.mark.parametrize("n_kv_heads", [1, 2])
def test_repeated_heads_give_the_logits_of_fewer_heads(model_type: str, n_kv_heads: int) -> None:
    """Law 9: stock shapes with repeated rows against transformers' own grouped attention."""
    compact, tokens = tiny_model(model_type, n_kv_heads=n_kv_heads), tiny_tokens()
    expanded = tiny_model(model_type, seed=1)
    shared = {n: p for n, p in compact.named_parameters() if "self_attn" not in n}
    expanded.load_state_dict(shared, strict=False)
    family = family_of(model_type)
    for few, many in zip(family.blocks(compact), family.blocks(expanded), strict=True):
        family.write(family.attention(many), family.read(family.attention(few)))
        expanded_norms = dict(family.attention(many).named_parameters())
        for name, parameter in family.attention(few).named_parameters():
            if "norm" in name:
                expanded_norms[name].data.copy_(parameter)

    torch.testing.assert_close(logits(expanded, tokens), logits(compact, tokens), **CLOSE)
