"""llama.cpp's architectures whose layers may each have their own number of KV heads.

The facts are from llama.cpp's ``src/models/{deci,openelm,step35}.cpp`` and were tried with
llama.cpp. Most of its architectures take one number for all layers. Some of these three silently
ignore parts of a model (a bias, a scaled RoPE), so each class says what its architecture computes.
"""

from abc import ABC, abstractmethod
from collections.abc import Set
from typing import ClassVar

import torch
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGUFWriter
from torch import Tensor
from transformers import PreTrainedConfig

from mqasearch.families import AttentionWeights, family_of
from mqasearch.formats.positions import narrowest_window
from mqasearch.mask import KVHeads


class Architecture(ABC):
    """How one of llama.cpp's architectures expects weights and keys. It has no state.

    Attributes:
        arch: the architecture in the gguf library.
        biases: biases of ``AttentionWeights`` that the architecture adds.
        has_mlp_bias: whether it adds biases of the MLP.
        rope_types: transformers' names of the kinds of RoPE that it computes.
        rope_dims_factor: ratio of the RoPE dimensions to write to a head's dimensions.
    """

    arch: ClassVar[MODEL_ARCH]
    biases: ClassVar[Set[str]] = frozenset()
    has_mlp_bias: ClassVar[bool] = False
    rope_types: ClassVar[Set[str]] = frozenset({"default"})
    rope_dims_factor: ClassVar[int] = 1

    @property
    def name(self) -> str:
        """llama.cpp's name of the architecture, which is also the prefix of its keys."""
        return MODEL_ARCH_NAMES[self.arch]

    @abstractmethod
    def pack(self, weights: AttentionWeights) -> dict[str, Tensor]:
        """One attention layer's tensors, by transformers' name within the attention."""

    def add_keys(self, writer: GGUFWriter, config: PreTrainedConfig, kv_heads: KVHeads) -> None:
        """Write the keys with the sizes that llama.cpp builds its graph from."""
        head_dim = head_dim_of(config)
        writer.add_block_count(config.num_hidden_layers)
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(list(kv_heads))
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_vocab_size(config.vocab_size)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
        writer.add_rope_dimension_count(head_dim * self.rope_dims_factor)


class Deci(Architecture):
    """Llama, Mistral, Qwen2. RoPE pairs neighbouring dimensions; transformers pairs two halves."""

    arch = MODEL_ARCH.DECI
    biases = frozenset({"q_bias", "k_bias", "v_bias", "o_bias"})
    has_mlp_bias = True
    rope_types = frozenset({"default", "linear", "llama3", "yarn"})

    def pack(self, weights: AttentionWeights) -> dict[str, Tensor]:
        packed = family_of("llama").pack(weights)
        for name in ("q_proj.weight", "k_proj.weight", "q_proj.bias", "k_proj.bias"):
            if name in packed:
                packed[name] = _neighbours(packed[name], weights.head_dim)
        return packed


class OpenELM(Architecture):
    """Qwen3 with tied embeddings: norms of q and k, one fused projection, no output matrix."""

    arch = MODEL_ARCH.OPENELM
    rope_types = frozenset({"default", "linear", "yarn"})

    def pack(self, weights: AttentionWeights) -> dict[str, Tensor]:
        packed = family_of("qwen3").pack(weights)
        fused = [packed.pop(f"{name}.weight") for name in ("q_proj", "k_proj", "v_proj")]
        return {"qkv_proj.weight": torch.cat(fused), **packed}


class Step35(Architecture):
    """Qwen3 with an output matrix.

    Its layers have sliding or full attention, and at least one must be sliding: here the first
    layer is, with a window of the whole context. Full layers apply RoPE to half of the given number
    of dimensions, so twice the head's dimensions are given.
    """

    arch = MODEL_ARCH.STEP35
    rope_dims_factor = 2

    def pack(self, weights: AttentionWeights) -> dict[str, Tensor]:
        return family_of("qwen3").pack(weights)

    def add_keys(self, writer: GGUFWriter, config: PreTrainedConfig, kv_heads: KVHeads) -> None:
        super().add_keys(writer, config, kv_heads)
        head_dim = head_dim_of(config)
        writer.add_rope_dimension_count_swa(head_dim)
        writer.add_rope_freq_base_swa(config.rope_parameters["rope_theta"])
        writer.add_sliding_window(config.max_position_embeddings)
        writer.add_sliding_window_pattern([layer == 0 for layer in range(len(kv_heads))])
        writer.add_expert_feed_forward_length(config.intermediate_size)  # required, but not used


def architecture_of(config: PreTrainedConfig) -> Architecture:
    """The architecture in which a model of a known type is written."""
    if config.model_type == "qwen3":
        return OpenELM() if config.tie_word_embeddings else Step35()
    return Deci()


def head_dim_of(config: PreTrainedConfig) -> int:
    """Dimensions of one head."""
    given: int | None = getattr(config, "head_dim", None)
    return given or config.hidden_size // config.num_attention_heads


def architecture_fault(
    architecture: Architecture, config: PreTrainedConfig, weights: AttentionWeights
) -> str | None:
    """Which part of the model llama.cpp would not compute; None = none.

    Args:
        architecture: the architecture in which the model is written.
        config: the model's config.
        weights: any layer's weights; only their names are used, to see which biases there are.
    """
    if config.hidden_act != "silu":
        return f"llama.cpp computes SiLU in its {architecture.name}, not {config.hidden_act!r}"
    if window := narrowest_window(config):
        return f"llama.cpp's {architecture.name} has no sliding window (of {window} tokens)"
    ignored = [name for name in weights.tensors() if name.endswith("bias")]
    ignored = [name for name in ignored if name not in architecture.biases]
    if getattr(config, "mlp_bias", False) and not architecture.has_mlp_bias:
        ignored.append("mlp_bias")
    if ignored:
        return f"llama.cpp's {architecture.name} leaves out its {', '.join(ignored)}"
    return None


def _neighbours(rows: Tensor, head_dim: int) -> Tensor:
    """Rows of heads, [n·d, ...], with pair l at (2l, 2l + 1) instead of (l, l + d/2)."""
    heads = rows.reshape(-1, 2, head_dim // 2, *rows.shape[1:])
    return heads.transpose(1, 2).reshape(rows.shape)
