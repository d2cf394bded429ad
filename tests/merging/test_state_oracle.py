"""Merging weights against an oracle that never touches a weight (merging.md, law 10).

Attention functions registered with transformers average the K and V *states* over heads, while the
model keeps its weights. K and V are linear in the weights and RoPE turns every head alike, so the
logits must be those of ``mean`` surgery, wherever no norm stands between projection and RoPE.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from mqasearch.conversion import ConvertibleModel
from mqasearch.families import family_of
from mqasearch.merging.merges import merge_of
from tests.tiny import GROUPED, MODEL_TYPES, N_HEADS, logits, tiny_model, tiny_tokens


def mean_states(states: Tensor, target: int) -> Tensor:
    """[batch, heads, tokens, d], each head replaced by the mean of its contiguous group."""
    heads = states.shape[1]
    pooled = states.unflatten(1, (target, -1)).mean(dim=2)
    return pooled.repeat_interleave(heads // target, dim=1)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Plain attention with an additive mask; [batch, tokens, heads, d]."""
    group = query.shape[1] // key.shape[1]
    key, value = (states.repeat_interleave(group, dim=1) for states in (key, value))
    scores = query @ key.transpose(2, 3) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    probabilities = (scores + attention_mask).softmax(dim=-1)
    return (probabilities @ value).transpose(1, 2), None


def oracle(name: str, *, keys: bool, target: int) -> str:
    """Register attention over mean values, and mean keys if ``keys``; returns its name."""

    def pooled(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **kwargs: Any
    ) -> tuple[Tensor, None]:
        key = mean_states(key, target) if keys else key
        return attend(module, query, key, mean_states(value, target), mask, **kwargs)

    AttentionInterface.register(name, pooled)
    AttentionMaskInterface.register(name, eager_mask)
    return name


CASES = [(t, N_HEADS, target) for t in MODEL_TYPES for target in (1, 2) if t != "qwen3"]
CASES += [(t, 2, 1) for t in GROUPED if t != "qwen3"]


@pytest.mark.parametrize(("model_type", "n_kv_heads", "target"), CASES)
def test_mean_surgery_equals_mean_states(model_type: str, n_kv_heads: int, target: int) -> None:
    model, tokens = tiny_model(model_type, n_kv_heads=n_kv_heads), tiny_tokens()
    convertible = ConvertibleModel(model, family_of(model_type), merge_of("mean"))
    with convertible.converted((target,) * 3):
        surgery = logits(model, tokens)

    model.set_attn_implementation(oracle("mean_of_both", keys=True, target=target))
    by_states = logits(model, tokens)

    torch.testing.assert_close(surgery, by_states, atol=1e-4, rtol=1e-4)
    model.set_attn_implementation("eager")
    assert (surgery - logits(model, tokens)).abs().max() > 1e-2


def test_with_a_key_norm_surgery_averages_before_the_norm() -> None:
    """Qwen3: V has no norm and obeys the oracle; K obeys it in front of its norm, not behind."""
    model, tokens = tiny_model("qwen3"), tiny_tokens()
    family = family_of("qwen3")
    with ConvertibleModel(model, family, merge_of("mean")).converted((1,) * 3):
        surgery = logits(model, tokens)

    model.set_attn_implementation(oracle("mean_of_both", keys=True, target=1))
    after_the_norm = logits(model, tokens)
    model.set_attn_implementation(oracle("mean_of_values", keys=False, target=1))
    for block in family.blocks(model):
        family.attention(block).k_norm.register_forward_pre_hook(
            lambda module, args: (mean_states(args[0].transpose(1, 2), 1).transpose(1, 2),)
        )
    before_the_norm = logits(model, tokens)

    torch.testing.assert_close(surgery, before_the_norm, atol=1e-4, rtol=1e-4)
    assert (surgery - after_the_norm).abs().max() > 1e-2
