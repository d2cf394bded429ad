"""How a model's attention uses positions: rotary scaling and sliding windows, from its config."""

from typing import Any

from transformers import PreTrainedConfig

ROPE_TYPES = ("default", "linear", "llama3")
"""transformers' ``rope_type`` of the rotary embeddings that engines compute as transformers does.

Engines have others (dynamic, yarn, longrope) under the same names, but with different factors.
"""

_EVERY_LAYER = ("mistral", "phi3")  # one window in all layers
_BY_LAYER_TYPE = ("qwen2", "qwen3", "gemma2")


def windows(config: PreTrainedConfig) -> tuple[int | None, ...]:
    """For each layer, the number of tokens that a token attends to, with itself; None = all."""
    n_layers: int = config.num_hidden_layers
    if config.model_type in _EVERY_LAYER:
        return (config.sliding_window,) * n_layers
    if config.model_type in _BY_LAYER_TYPE:
        return tuple(
            config.sliding_window if layer_type == "sliding_attention" else None
            for layer_type in config.layer_types
        )
    return (None,) * n_layers


def narrowest_window(config: PreTrainedConfig) -> int | None:
    """The smallest window that is shorter than the longest sequence; None = there is none."""
    narrow = [window for window in windows(config) if window is not None]
    return min(
        (window for window in narrow if window < config.max_position_embeddings), default=None
    )


def rope_theta(config: PreTrainedConfig) -> float:
    """The base of the rotary frequencies."""
    return float(config.rope_parameters["rope_theta"])


def rope_scaling(config: PreTrainedConfig) -> dict[str, Any] | None:
    """The scaling of the rotary frequencies, in the form of configs before transformers 5."""
    parameters = {
        key: value
        for key, value in config.rope_parameters.items()
        if key not in ("rope_theta", "partial_rotary_factor")
    }
    return None if parameters.get("rope_type", "default") == "default" else parameters


def rope_words(config: PreTrainedConfig) -> dict[str, Any]:
    """``rope_parameters`` as older keys of config.json, for engines that know only those.

    transformers 5 nests the base; MLX-LM's Llama does not read it there, and takes 10,000 instead.
    """
    parameters = getattr(config, "rope_parameters", None) or {}
    if "rope_theta" not in parameters:
        return {}
    scaling = rope_scaling(config)
    theta = {"rope_theta": rope_theta(config)}
    return theta if scaling is None else theta | {"rope_scaling": scaling}


def rope_fault(config: PreTrainedConfig) -> str | None:
    """Which part of the rotary embedding engines would compute differently; None = none."""
    parameters = config.rope_parameters
    if "rope_theta" not in parameters:
        return "its layers have rotary embeddings of different kinds"
    rope_type = parameters.get("rope_type", "default")
    if rope_type not in ROPE_TYPES:
        return f"its rotary embedding is of type {rope_type!r}, not {', '.join(ROPE_TYPES)}"
    return None
