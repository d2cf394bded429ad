"""Tiny random models of every supported family, made in milliseconds."""

import os
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

DEVICE = torch.device(os.environ.get("MQASEARCH_TEST_DEVICE", "cpu"))
"""Where the models are: ``MQASEARCH_TEST_DEVICE=cuda`` runs the laws on a GPU."""

N_HEADS = 4
HEAD_DIM = 8
VOCABULARY = 64

MODEL_TYPES = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "opt",
    "phi3",
    "gpt_neox",
    "gpt2",
)

GROUPED = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi3")
"""The types whose layout can have fewer KV heads than query heads."""

_HIDDEN = N_HEADS * HEAD_DIM


def tiny_model(
    model_type: str, *, seed: int = 0, n_layers: int = 3, n_kv_heads: int | None = None
) -> PreTrainedModel:
    """A random model: float32, eval mode, 4 query heads of dimension 8, 64 tokens.

    Weights are drawn large enough for attention to look at something, and every bias is random
    too, so that no test passes because a term happens to be zero.

    Args:
        n_kv_heads: KV heads of a layer; None = as many as query heads. Only for ``GROUPED`` types.
    """
    if n_kv_heads not in (None, N_HEADS) and model_type not in GROUPED:
        raise ValueError(f"{model_type} has no grouped KV heads")
    config = AutoConfig.for_model(
        model_type, **_config(model_type, n_layers, n_kv_heads or N_HEADS)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation=_attention(model_type)
        )
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                is_scale = name.endswith("weight") and ("norm" in name or "ln_" in name)
                centre = 1.0 if is_scale else 0.0
                torch.nn.init.normal_(parameter, mean=centre, std=0.2)
            else:
                torch.nn.init.normal_(parameter, std=0.25)
    assert isinstance(model, PreTrainedModel)
    return model.eval().to(DEVICE)


def tiny_tokens(*, seed: int = 0, batch: int = 2, length: int = 12) -> torch.Tensor:
    """Random token ids [batch, length]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (batch, length), generator=generator).to(DEVICE)


def logits(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    """Next-token logits [batch, length, vocabulary], without a cache."""
    with torch.no_grad():
        output: torch.Tensor = model(tokens, use_cache=False).logits
    return output


def _attention(model_type: str) -> str:
    return "eager" if model_type == "gemma2" else "sdpa"  # soft-capping: eager only


def _config(model_type: str, n_layers: int, n_kv_heads: int) -> dict[str, Any]:
    special: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    if model_type == "gpt2":
        sizes = {"n_embd": _HIDDEN, "n_layer": n_layers, "n_head": N_HEADS, "n_positions": 128}
        return special | sizes
    sizes = {
        "hidden_size": _HIDDEN,
        "num_hidden_layers": n_layers,
        "num_attention_heads": N_HEADS,
        "max_position_embeddings": 128,
    }
    if model_type == "opt":
        return special | sizes | {"ffn_dim": 48, "word_embed_proj_dim": _HIDDEN}
    sizes["intermediate_size"] = 48
    if model_type == "gpt_neox":
        return special | sizes | {"rotary_pct": 0.5}
    sizes["num_key_value_heads"] = n_kv_heads
    return special | sizes | _LLAMA_LIKE.get(model_type, {})


_LLAMA_LIKE: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 8},
    "qwen3": {"head_dim": HEAD_DIM, "attention_bias": True},
    "gemma": {"head_dim": HEAD_DIM},
    "gemma2": {"head_dim": HEAD_DIM, "query_pre_attn_scalar": HEAD_DIM, "sliding_window": 8},
    "phi3": {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
        }
    },
}
