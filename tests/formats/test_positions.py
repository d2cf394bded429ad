"""What a config says of rotary embeddings and windows, in words that engines know."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from mqasearch.checkpoint import convert_checkpoint
from mqasearch.formats.positions import narrowest_window, rope_words, windows
from mqasearch.models import LoadedModel
from tests.formats.test_nemotron_nas import LINEAR, LLAMA3, model_of
from tests.models.checkpoints import tokenizer
from tests.tiny import MODEL_TYPES, tiny_model


@pytest.mark.parametrize("scaling", [LLAMA3, LINEAR, {"rope_type": "default", "rope_theta": 7e3}])
def test_transformers_reads_the_older_words_as_the_same_rope(scaling: dict[str, object]) -> None:
    config = model_of("llama", rope_parameters=dict(scaling)).config
    read = AutoConfig.for_model("llama", max_position_embeddings=64, **rope_words(config))
    assert read.rope_parameters == scaling


@pytest.mark.parametrize("rope_parameters", [LLAMA3, {"rope_type": "default", "rope_theta": 7e3}])
def test_an_expanded_folder_says_its_rope_in_both_words(
    rope_parameters: dict[str, object], tmp_path: Path
) -> None:
    """MLX-LM's Llama takes the base from the older word, or 10,000."""
    model = model_of("llama", rope_parameters=dict(rope_parameters))
    cpu = torch.device("cpu")
    loaded = LoadedModel(model, tokenizer(), "tiny/llama", "0" * 64, cpu, model.dtype)
    convert_checkpoint((1, 4, 2), loaded, tmp_path / "out", format="expanded")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    assert config["rope_theta"] == rope_parameters["rope_theta"]
    assert ("rope_scaling" in config) == (rope_parameters["rope_type"] != "default")
    assert AutoConfig.from_pretrained(tmp_path / "out").rope_parameters == rope_parameters


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_windows_by_layer(model_type: str) -> None:
    model = tiny_model(model_type)
    sliding = {"mistral": [8, 8, 8], "gemma2": [8, None, 8]}
    assert list(windows(model.config)) == sliding.get(model_type, [None] * 3)
    assert narrowest_window(model.config) == (8 if model_type in sliding else None)


def test_a_window_as_long_as_the_longest_sequence_hides_nothing() -> None:
    config = model_of("mistral", sliding_window=64).config
    assert windows(config) == (64, 64, 64)
    assert narrowest_window(config) is None
