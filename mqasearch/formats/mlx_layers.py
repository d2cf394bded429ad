"""Models of every family in the form of ``modeling/mlx_mqa.py.txt``: layers and tensor names.

"The file" below is that file. It computes one transformer whose parts can be chosen. Here each
model type is described by its parts (``layers``), and its tensors get Llama's names (``tensors``).
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from mqasearch.families import FAMILIES
from mqasearch.formats.config import is_tied
from mqasearch.formats.converted import Converted
from mqasearch.formats.positions import rope_fault, rope_scaling, rope_theta, windows
from mqasearch.formats.safetensors_stream import Entry

_ACTIVATIONS: Mapping[str, str] = MappingProxyType(
    {
        "gelu": "gelu",
        "gelu_fast": "gelu_tanh",
        "gelu_new": "gelu_tanh",
        "gelu_pytorch_tanh": "gelu_tanh",
        "relu": "relu",
        "silu": "silu",
    }
)
"""transformers' name of an activation → the file's name."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """What all models of a type have in common.

    Attributes:
        norm: kind of norm, by the file's name.
        gated: whether the MLP multiplies two projections of its input.
        names: (pattern, replacement) pairs, applied to every tensor's name one after the other.
        first_position: row of the learned position embeddings for the first token; None = the
            model has no such embeddings.
    """

    norm: Literal["rms", "rms_plus_one", "layer"] = "rms"
    gated: bool = True
    names: tuple[tuple[str, str], ...] = ()
    first_position: int | None = None


_LLAMA = _Kind()
_KINDS: Mapping[str, _Kind] = MappingProxyType(
    {
        "llama": _LLAMA,
        "mistral": _LLAMA,
        "qwen2": _LLAMA,
        "qwen3": _LLAMA,
        "phi3": _LLAMA,
        "gemma": _Kind(norm="rms_plus_one"),
        "gemma2": _Kind(norm="rms_plus_one"),
        "opt": _Kind(
            norm="layer",
            gated=False,
            first_position=2,
            names=(
                (r"^model\.decoder\.final_layer_norm", "model.norm"),
                (r"^model\.decoder\.", "model."),
                (r"\.self_attn_layer_norm\.", ".input_layernorm."),
                (r"\.final_layer_norm\.", ".post_attention_layernorm."),
                (r"\.fc1\.", ".mlp.up_proj."),
                (r"\.fc2\.", ".mlp.down_proj."),
            ),
        ),
        "gpt_neox": _Kind(
            norm="layer",
            gated=False,
            names=(
                (r"^embed_out\.", "lm_head."),
                (r"^gpt_neox\.embed_in\.", "model.embed_tokens."),
                (r"^gpt_neox\.final_layer_norm\.", "model.norm."),
                (r"^gpt_neox\.", "model."),
                (r"\.attention\.", ".self_attn."),
                (r"\.dense_h_to_4h\.", ".up_proj."),
                (r"\.dense_4h_to_h\.", ".down_proj."),
            ),
        ),
        "gpt2": _Kind(
            norm="layer",
            gated=False,
            first_position=0,
            names=(
                (r"^transformer\.wte\.", "model.embed_tokens."),
                (r"^transformer\.wpe\.", "model.embed_positions."),
                (r"^transformer\.ln_f\.", "model.norm."),
                (r"^transformer\.h\.", "model.layers."),
                (r"\.attn\.", ".self_attn."),
                (r"\.ln_1\.", ".input_layernorm."),
                (r"\.ln_2\.", ".post_attention_layernorm."),
                (r"\.c_fc\.", ".up_proj."),
                (r"\.mlp\.c_proj\.", ".mlp.down_proj."),
            ),
        ),
    }
)

MODEL_TYPES = tuple(_KINDS)
"""The model types that the file computes."""


@dataclass(frozen=True, slots=True)
class Layers:
    """The fields of ``ModelArgs`` in the file."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    n_heads: int
    head_dim: int
    kv_heads: tuple[int, ...]
    windows: tuple[int | None, ...]
    norm: str
    norm_eps: float
    qk_norm: bool
    post_norms: bool
    parallel: bool
    activation: str
    gated: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    attention_scale: float
    attention_softcap: float | None
    final_softcap: float | None
    embedding_scale: float
    rope: dict[str, Any] | None
    positions: dict[str, int] | None
    tied: bool


def layers(converted: Converted) -> dict[str, Any]:
    """The contents of ``mqa`` in config.json."""
    config, shape = converted.model.config, converted.convertible.shape
    kind, attention = _KINDS[converted.model_type], converted.announced(0)
    sizes = {entry.name: entry.shape for entry in entries(converted)}
    is_gemma = converted.model_type in ("gemma", "gemma2")
    scalar = getattr(config, "query_pre_attn_scalar", shape.head_dim)
    return asdict(
        Layers(
            model_type=converted.model_type,
            vocab_size=sizes["model.embed_tokens.weight"][0],
            hidden_size=shape.hidden_size,
            intermediate_size=sizes["model.layers.0.mlp.up_proj.weight"][0],
            n_heads=shape.n_heads,
            head_dim=attention.head_dim,
            kv_heads=converted.kv_heads,
            windows=windows(config),
            norm=kind.norm,
            norm_eps=_norm_eps(config),
            qk_norm=attention.has_qk_norm,
            post_norms=converted.model_type == "gemma2",
            parallel=getattr(config, "use_parallel_residual", False),
            activation=_ACTIVATIONS[_activation(config)],
            gated=kind.gated,
            qkv_bias=attention.q_bias is not None,
            o_bias=attention.o_bias is not None,
            mlp_bias="model.layers.0.mlp.up_proj.bias" in sizes,
            attention_scale=scalar**-0.5 if getattr(config, "scale_attn_weights", True) else 1.0,
            attention_softcap=getattr(config, "attn_logit_softcapping", None),
            final_softcap=getattr(config, "final_logit_softcapping", None),
            embedding_scale=shape.hidden_size**0.5 if is_gemma else 1.0,
            rope=_rope(config, attention.rope.rotary_dims),
            positions=_positions(kind, sizes),
            tied=is_tied(converted.model),
        )
    )


def fault(converted: Converted) -> str | None:
    """Which part of the model the file does not compute; None = none."""
    config = converted.model.config
    if _activation(config) not in _ACTIVATIONS:
        known = ", ".join(_ACTIVATIONS)
        return f"its activation is {_activation(config)!r}, not one of {known}"
    for key, expected in _EXPECTED.get(converted.model_type, {}).items():
        if (value := getattr(config, key)) not in expected:
            return f"its {key} is {value}"
    if converted.model_type == "opt" and config.word_embed_proj_dim != config.hidden_size:
        return "its embeddings have another size than its layers"
    return rope_fault(config) if converted.announced(0).rope.rotary_dims else None


_EXPECTED: Mapping[str, Mapping[str, tuple[Any, ...]]] = MappingProxyType(
    {
        "gemma": {"use_bidirectional_attention": (None, False)},
        "gemma2": {"use_bidirectional_attention": (None, False)},
        "gpt2": {"scale_attn_by_inverse_layer_idx": (False,), "add_cross_attention": (False,)},
        "opt": {
            "do_layer_norm_before": (True,),
            "layer_norm_elementwise_affine": (True,),
            "_remove_final_layer_norm": (False,),
        },
    }
)
"""Model type → key of the config → the values that the file computes."""


def entries(converted: Converted) -> list[Entry]:
    """Every tensor of the folder, by its name in the file; no layer is merged."""
    transposed, kind = _transposed(converted), _KINDS[converted.model_type]
    return [
        Entry(name, tensor.dtype, tuple(tensor.shape))
        for entry in converted.entries(FAMILIES["llama"].pack)
        for name, tensor in _stored(
            kind,
            entry.name,
            torch.empty(entry.shape, dtype=entry.dtype, device="meta"),
            transposed,
        )
    ]


def tensors(converted: Converted) -> Iterator[Tensor]:
    """The tensors, in the order of ``entries``; memory holds one merged layer at a time."""
    transposed, kind = _transposed(converted), _KINDS[converted.model_type]
    pack = FAMILIES["llama"].pack
    names = [entry.name for entry in converted.entries(pack)]
    for name, tensor in zip(names, converted.tensors(pack), strict=True):
        for _, stored in _stored(kind, name, tensor, transposed):
            yield stored


def _stored(
    kind: _Kind, name: str, tensor: Tensor, transposed: frozenset[str]
) -> Iterator[tuple[str, Tensor]]:
    """One tensor of the original in the file's form: renamed, transposed, or split in two."""
    if name in transposed:
        tensor = tensor.T
    for pattern, replacement in kind.names:
        name = re.sub(pattern, replacement, name)
    if ".gate_up_proj." not in name:
        yield name, tensor
        return
    for half, part in zip(("gate_proj", "up_proj"), tensor.chunk(2), strict=True):
        yield name.replace("gate_up_proj", half), part


def _transposed(converted: Converted) -> frozenset[str]:
    """Names of weights that GPT-2 stores as [in, out] outside the attention."""
    modules = converted.model.named_modules()
    return frozenset(f"{name}.weight" for name, module in modules if isinstance(module, Conv1D))


def _activation(config: PreTrainedConfig) -> str:
    for key in ("hidden_activation", "hidden_act", "activation_function"):
        if name := getattr(config, key, None):
            return str(name)
    raise AssertionError(f"a config without an activation: {config.model_type}")


def _norm_eps(config: PreTrainedConfig) -> float:
    for key in ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon"):
        if hasattr(config, key):
            return float(getattr(config, key))
    return 1e-5  # OPT's config has no such key, and this is torch's default


def _rope(config: PreTrainedConfig, rotary_dims: int) -> dict[str, Any] | None:
    if not rotary_dims:
        return None
    return {
        "dims": rotary_dims,
        "base": rope_theta(config),
        "scaling": rope_scaling(config),
        "max_position_embeddings": config.max_position_embeddings,
    }


def _positions(kind: _Kind, sizes: Mapping[str, tuple[int, ...]]) -> dict[str, int] | None:
    if kind.first_position is None:
        return None
    return {"rows": sizes["model.embed_positions.weight"][0], "first": kind.first_position}
