"""``nemotron-nas``: Llama-shaped models whose layers may have different numbers of KV heads.

vLLM, MLX-LM, ExLlamaV3 and TensorRT-LLM implement its architecture, ``DeciLMForCausalLM``.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mqasearch import __version__
from mqasearch.families import FAMILIES, AttentionWeights
from mqasearch.formats.config import is_tied, template, write_config
from mqasearch.formats.converted import Converted, Pack
from mqasearch.formats.format import Format, Options, Serving
from mqasearch.formats.positions import narrowest_window, rope_fault, rope_words
from mqasearch.formats.safetensors_stream import write_sharded
from mqasearch.formats.tokenizer import write_tokenizer
from mqasearch.models import KV_HEADS_KEY

_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "rms_norm_eps",
    "hidden_act",
    "initializer_range",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
"""Keys of config.json that are copied from the original."""

_ROUNDING = 256
"""Engines compute the intermediate size from a factor, and round it up to a multiple of this."""


class NemotronNAS(Format):
    """The folder of a pruned Nemotron from which only KV heads were pruned."""

    name = "nemotron-nas"
    summary = "Llama, Mistral, Qwen2: vLLM's, MLX's and TensorRT-LLM's own architecture"
    refused_by = (
        "SGLang refuses models whose layers differ in their number of KV heads; transformers has "
        "no model of this architecture."
    )
    model_types = ("llama", "mistral", "qwen2")

    def fault(self, converted: Converted) -> str | None:
        config, shape = converted.model.config, converted.convertible.shape
        if config.intermediate_size % _ROUNDING:
            return (
                f"its intermediate size {config.intermediate_size} is no multiple of {_ROUNDING}, "
                "to which engines round it up"
            )
        if shape.head_dim * shape.n_heads != shape.hidden_size:
            return (
                f"its head dimension {shape.head_dim} is not its hidden size {shape.hidden_size} "
                f"divided by its {shape.n_heads} heads"
            )
        if config.hidden_act != "silu":
            return f"its activation is {config.hidden_act!r}, not 'silu'"
        if window := narrowest_window(config):
            return f"its attention slides over {window} tokens, and engines would look at all"
        if config.rope_parameters.get("partial_rotary_factor", 1) != 1:
            return "its rotary embedding turns only a part of each head"
        return rope_fault(config)

    def n_bytes(self, converted: Converted, options: Options) -> int:
        return sum(entry.n_bytes for entry in converted.entries(_pack(converted)))

    def write(self, converted: Converted, folder: Path, options: Options) -> Iterator[int]:
        yield from self.write_tensors(converted, folder, options)
        write_tokenizer(folder, converted)
        code = template("configuration_nemotron_nas").replace("{version}", __version__)
        (folder / "configuration_nemotron_nas.py").write_text(code, encoding="utf-8")
        auto_map = {"AutoConfig": "configuration_nemotron_nas.NemotronNasConfig"}
        write_config(folder, converted.model, self.config(converted) | {"auto_map": auto_map})

    def write_tensors(self, converted: Converted, folder: Path, options: Options) -> Iterator[int]:
        """Write the weights alone, and yield as ``write`` does."""
        pack = _pack(converted)
        entries, tensors = converted.entries(pack), converted.tensors(pack)
        for entry in write_sharded(folder, entries, tensors, options.max_shard_bytes):
            yield entry.n_bytes

    def config(self, converted: Converted) -> dict[str, Any]:
        """The contents of config.json, without ``auto_map``, the code that transformers needs."""
        model, config = converted.model, converted.model.config
        return {name: getattr(config, name) for name in _FIELDS} | {
            "model_type": self.name,
            "architectures": ["DeciLMForCausalLM"],
            "block_configs": [_block(converted, heads) for heads in converted.kv_heads],
            "attention_bias": converted.announced(0).q_bias is not None,
            "mlp_bias": getattr(config, "mlp_bias", False),
            "tie_word_embeddings": is_tied(model),
            "dtype": str(model.dtype).removeprefix("torch."),
            KV_HEADS_KEY: list(converted.kv_heads),
            **rope_words(config),
        }

    def serving(self, model_type: str) -> tuple[Serving, ...]:
        note = "# the code that it trusts only reads config.json: the model is {}'s own\n"
        return (
            Serving(
                "vLLM",
                note.format("vLLM") + "vllm serve FOLDER --trust-remote-code --host 127.0.0.1",
            ),
            Serving(
                "MLX",
                note.format("MLX-LM") + "mlx_lm.generate --model FOLDER --trust-remote-code "
                '--prompt "Once upon a time"',
            ),
        )


def _block(converted: Converted, kv_heads: int) -> dict[str, Any]:
    config = converted.model.config
    exists = {"no_op": False, "replace_with_linear": False}
    return {
        "attention": exists | {"n_heads_in_group": config.num_attention_heads // kv_heads},
        # engines take int(2 · ffn_mult · hidden_size / 3), and round up
        "ffn": exists | {"ffn_mult": 3 * config.intermediate_size / (2 * config.hidden_size)},
    }


def _pack(converted: Converted) -> Pack:
    """Pack as Llama's attention, which has biases on all four projections or on none."""
    family = FAMILIES[converted.model_type]

    def pack(weights: AttentionWeights) -> dict[str, Tensor]:
        packed = family.pack(weights)
        if weights.q_bias is not None and weights.o_bias is None:  # Qwen2
            o = packed["o_proj.weight"]
            packed["o_proj.bias"] = torch.zeros(o.shape[0], dtype=o.dtype, device=o.device)
        return packed

    return pack
