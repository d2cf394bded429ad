"""How a model's attention knows positions: rotary scaling and sliding windows, by its config."""

from typing import Any

from transformers import PreTrainedConfig

ROPE_TYPES = ("default", "linear", "llama3")
"""transformers' ``rope_type`` of the rotary embeddings that engines compute as transformers does.

Others (dynamic, yarn, longrope) exist in engines under the same name, with factors of their own.
"""

_EVERY_LAYER = ("mistral", "phi3")  # one window in all layers
_BY_LAYER_TYPE = ("qwen2", "qwen3", "gemma2")


def windows(config: PreTrainedConfig) -> tuple[int | None, ...]:
    """Tokens that each layer's attention looks back to, its own among them; None = all."""
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
    """The smallest window that hides a token of the longest sequence; None = none does."""
    narrow = [window for window in windows(config) if window is not None]
    return min(
        (window for window in narrow if window < config.max_position_embeddings), default=None
    )


def rope_theta(config: PreTrainedConfig) -> float:
    """The base of the rotary frequencies."""
    return float(config.rope_parameters["rope_theta"])


def rope_scaling(config: PreTrainedConfig) -> dict[str, Any] | None:
    """The scaling of the rotary frequencies, in the words of configs before transformers 5."""
    parameters = {
        key: value
        for key, value in config.rope_parameters.items()
        if key not in ("rope_theta", "partial_rotary_factor")
    }
    return None if parameters.get("rope_type", "default") == "default" else parameters


def rope_words(config: PreTrainedConfig) -> dict[str, Any]:
    """Keys of config.json that say what ``rope_parameters`` says, for engines that know only them.

    transformers 5 nests the base, and MLX-LM's Llama, which does not look there, takes 10,000.
    """
    parameters = getattr(config, "rope_parameters", None) or {}
    if "rope_theta" not in parameters:
        return {}
    scaling = rope_scaling(config)
    theta = {"rope_theta": rope_theta(config)}
    return theta if scaling is None else theta | {"rope_scaling": scaling}


def rope_fault(config: PreTrainedConfig) -> str | None:
    """What of the rotary embedding engines would compute in another way; None = nothing."""
    parameters = config.rope_parameters
    if "rope_theta" not in parameters:
        return "its layers have rotary embeddings of different kinds"
    rope_type = parameters.get("rope_type", "default")
    if rope_type not in ROPE_TYPES:
        return f"its rotary embedding is of type {rope_type!r}, not {', '.join(ROPE_TYPES)}"
    return None
