"""Sizes by the config are the sizes of the weights."""

import pytest
import torch
from transformers import AutoConfig

from mqasearch.errors import ModelError
from mqasearch.families import family_of
from mqasearch.models import shape_of
from tests.tiny import GROUPED, MODEL_TYPES, N_HEADS, tiny_model

LAYOUTS = [(model_type, N_HEADS) for model_type in MODEL_TYPES] + [
    (model_type, 2) for model_type in GROUPED
]


@pytest.mark.parametrize(("model_type", "n_kv_heads"), LAYOUTS)
def test_the_shape_is_that_of_the_weights(model_type, n_kv_heads):
    model = tiny_model(model_type, n_layers=2, n_kv_heads=n_kv_heads)
    family = family_of(model_type)
    blocks = family.blocks(model)
    weights = family.read(family.attention(blocks[0]))
    shape = shape_of(model, torch.bfloat16)
    assert shape.n_layers == len(blocks)
    assert shape.n_heads == weights.n_heads
    assert shape.n_kv_heads == weights.n_kv_heads
    assert shape.head_dim == weights.head_dim
    assert shape.hidden_size == weights.hidden_size
    assert shape.bytes_per_element == 2
    assert shape_of(model.config, torch.bfloat16) == shape


@pytest.mark.parametrize("model_type", ["gemma", "qwen3"])
def test_the_dimension_of_a_head_need_not_divide_the_hidden_size(model_type):
    sizes = {"hidden_size": 48, "num_attention_heads": 4, "head_dim": 32}
    config = AutoConfig.for_model(model_type, **sizes)
    assert shape_of(config, torch.float32).head_dim == 32


def test_a_model_without_attention_heads_is_named():
    with pytest.raises(ModelError, match="model type 'mamba' has no attention heads"):
        shape_of(AutoConfig.for_model("mamba"), torch.float32)
