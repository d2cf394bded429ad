"""The model card: what it says of the model, what is saved, and how to load it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mqasearch.checkpoint.card import model_card
from mqasearch.checkpoint.convert import convert_checkpoint
from mqasearch.export import read_mask
from mqasearch.formats import FORMATS
from mqasearch.mask import ModelShape
from mqasearch.models import LoadedModel
from tests.models.checkpoints import tokenizer
from tests.tiny import tiny_model

KV_HEADS = (1, 4, 2)
SHAPE = ModelShape(
    n_layers=3, n_heads=4, n_kv_heads=4, head_dim=8, hidden_size=32, bytes_per_element=4
)
"""Of a tiny Llama in float32."""


@pytest.fixture
def mask(tmp_path: Path) -> dict[str, Any]:
    """A mask JSON for it."""
    model = tiny_model("llama")
    cpu = torch.device("cpu")
    loaded = LoadedModel(model, tokenizer(), "tiny/llama", "0" * 64, cpu, model.dtype)
    assert loaded.shape == SHAPE
    convert_checkpoint(KV_HEADS, loaded, tmp_path / "for_mask")
    return read_mask(tmp_path / "for_mask" / "mask.json")


def test_a_card_names_no_path(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "original")
    of_folder = LoadedModel(
        model, tokenizer(), str(tmp_path / "original"), "0" * 64, torch.device("cpu"), model.dtype
    )
    convert_checkpoint(KV_HEADS, of_folder, tmp_path / "out", format="expanded")
    for file in ("README.md", "config.json", "tokenizer_config.json", "generation_config.json"):
        assert str(tmp_path) not in (tmp_path / "out" / file).read_text()
    assert "saves no memory" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("source", "base"),
    [
        ("owner/name", "base_model: owner/name\n"),
        ("gpt2", "base_model: gpt2\n"),
        ("smollm2-135m", ""),
        ("/models/of mine/tiny", ""),
        ("../tiny", ""),
        ("tiny.gguf", ""),
    ],
)
def test_a_card_names_the_base_model_where_others_can_find_it(
    source: str, base: str, mask: dict[str, Any]
) -> None:
    mask["model"]["id"] = source
    card = model_card(mask, SHAPE, FORMATS["hf"], "llama")
    assert card.count("base_model") == bool(base)
    assert base in card
    assert "of mine" not in card
    assert "models/" not in card
    assert f"# {source.split('/')[-1] if not base else source} with" in card


@pytest.mark.parametrize(
    ("name", "options"), [("hf", ", trust_remote_code=True"), ("expanded", "")]
)
def test_a_card_says_how_to_load_the_tokenizer_too(
    name: str, options: str, mask: dict[str, Any]
) -> None:
    card = model_card(mask, SHAPE, FORMATS[name], "llama")
    for kind in ("AutoModelForCausalLM", "AutoTokenizer"):
        assert f"= {kind}.from_pretrained(FOLDER{options})\n" in card


def test_a_card_says_what_is_saved_on_each_rank(mask: dict[str, Any]) -> None:
    """4 KV heads of dimension 8 in float32, 3 layers with 1, 4 and 2 of them."""
    card = model_card(mask, SHAPE, FORMATS["hf"], "llama")
    assert "448 bytes in float32, 58% of the original's 768" in card
    for row in ("| 1 | 448 | 58% |", "| 2 | 256 | 67% |", "| 4 | 192 | 100% |"):
        assert row in card
    whole = model_card(mask, SHAPE, FORMATS["expanded"], "llama")
    assert "ranks" not in whole
