"""Rotary position embedding in the form of GGUF files."""

from collections.abc import Set
from typing import Any

import torch
from gguf import GGUFWriter, RopeScalingType
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from mqasearch.formats.gguf_architectures import head_dim_of

_YARN = frozenset(
    {"rope_type", "rope_theta", "factor", "original_max_position_embeddings", "beta_fast"}
    | {"beta_slow", "partial_rotary_factor"}
)
"""Parameters that llama.cpp has keys for.

It computes ``attention_factor`` and ``mscale`` itself and has no keys for given values.
"""


def rope_fault(config: PreTrainedConfig, rope_types: Set[str], arch: str) -> str | None:
    """Which part of the model's RoPE llama.cpp would compute differently; None = none."""
    rope: dict[str, Any] = config.rope_parameters
    kind = rope.get("rope_type", "default")
    if "rope_theta" not in rope:
        return "its layers have different RoPE"
    if kind not in rope_types:
        return f"llama.cpp's {arch} has no RoPE of kind {kind!r}"
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        return f"llama.cpp's {arch} turns all of a head's dimensions by RoPE"
    if kind == "yarn":
        unknown = sorted(
            key for key, value in rope.items() if key not in _YARN and value is not None
        )
        if unknown:
            return f"llama.cpp's {arch} has no key for YaRN's {', '.join(unknown)}"
    return None


def add_rope_scaling(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    """Write the keys of linear scaling and of YaRN."""
    rope: dict[str, Any] = config.rope_parameters
    kind = rope.get("rope_type", "default")
    if kind not in ("linear", "yarn"):
        return
    writer.add_rope_scaling_type(RopeScalingType(kind))
    writer.add_rope_scaling_factor(rope["factor"])
    if kind == "yarn":
        original = rope.get("original_max_position_embeddings")
        writer.add_rope_scaling_orig_ctx_len(original or config.max_position_embeddings)
        writer.add_rope_scaling_yarn_beta_fast(rope.get("beta_fast") or 32.0)
        writer.add_rope_scaling_yarn_beta_slow(rope.get("beta_slow") or 1.0)


def rope_factors(config: PreTrainedConfig) -> Tensor | None:
    """[d/2]: the factor by which scaling slows down the rotation of each pair of dimensions.

    This is the tensor ``rope_freqs.weight``, which expresses Llama-3's scaling; None for other
    kinds of scaling.
    """
    rope: dict[str, Any] = config.rope_parameters
    if rope.get("rope_type") != "llama3":
        return None
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    head_dim = head_dim_of(config)
    powers = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    factors: Tensor = 1.0 / rope["rope_theta"] ** powers / scaled
    return factors
