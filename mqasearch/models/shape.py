"""The sizes of a model that decide its KV cache."""

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from mqasearch.errors import ModelError
from mqasearch.mask import ModelShape


def shape_of(source: PreTrainedModel | PreTrainedConfig, dtype: torch.dtype) -> ModelShape:
    """A model's sizes, from its config.

    Names of keys differ between model types; transformers maps most of them. Multi-head models
    state no number of KV heads, and few models state the dimension of a head.

    Args:
        source: a model or its config.
        dtype: the KV cache's dtype.

    Raises:
        ModelError: the config states no layers or no attention heads.
    """
    whole = source.config if isinstance(source, PreTrainedModel) else source
    config = whole.get_text_config()
    n_layers = getattr(config, "num_hidden_layers", None)
    n_heads = getattr(config, "num_attention_heads", None)
    hidden_size = getattr(config, "hidden_size", None)
    if not (isinstance(n_layers, int) and isinstance(n_heads, int) and hidden_size):
        raise ModelError(
            f"model type {whole.model_type!r} has no attention heads to merge: "
            "its config states no num_hidden_layers, num_attention_heads and hidden_size"
        )
    return ModelShape(
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=getattr(config, "num_key_value_heads", None) or n_heads,
        head_dim=getattr(config, "head_dim", None) or hidden_size // n_heads,
        hidden_size=hidden_size,
        bytes_per_element=dtype.itemsize,
    )
