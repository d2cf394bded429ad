"""The folder of format ``hf``: what transformers and vLLM read in it beside the weights."""

import json
import logging
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel

from mqasearch.checkpoint import convert_checkpoint
from mqasearch.errors import ModelError
from mqasearch.latency.transformers_runner import cache_keyword
from mqasearch.mask import KVHeads
from mqasearch.models import LoadedModel, load_model
from tests.models.checkpoints import save, tokenizer
from tests.tiny import GROUPED, MODEL_TYPES, logits, tiny_model, tiny_tokens

KV_HEADS: KVHeads = (1, 4, 2)
TOKENS = tiny_tokens(batch=1, length=10)
OLD = Path(__file__).parent / "old_folder"
"""Code and config of a tiny Llama with ``KV_HEADS``, as version 0.1.0 wrote them."""


@pytest.fixture(autouse=True)
def _own_cache_of_remote_code(tmp_path: Path) -> Iterator[None]:
    """transformers copies a checkpoint's Python files to a cache before it imports them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", list(sys.path))
        for module in (transformers.dynamic_module_utils, transformers.utils.hub):
            patch.setattr(module, "HF_MODULES_CACHE", str(tmp_path / "modules"))
        yield
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]


def converted(model: PreTrainedModel, folder: Path, kv_heads: KVHeads = KV_HEADS) -> Path:
    cpu = torch.device("cpu")
    whole = LoadedModel(model, tokenizer(), "tiny", "0" * 64, cpu, model.dtype)
    return convert_checkpoint(kv_heads, whole, folder).folder


def load(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()


def heads_of(config: Any) -> KVHeads:
    return tuple(layer.num_key_value_heads for layer in config.per_layer_config)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_config_says_in_transformers_own_words_how_layers_differ(
    model_type: str, tmp_path: Path
) -> None:
    folder = converted(tiny_model(model_type), tmp_path / "out")
    assert heads_of(AutoConfig.from_pretrained(folder, trust_remote_code=True)) == KV_HEADS
    assert heads_of(load(folder).config) == KV_HEADS


def test_layers_are_in_order_however_many_there_are(tmp_path: Path) -> None:
    kv_heads = (4, 1, 2) * 4
    folder = converted(tiny_model("llama", n_layers=12), tmp_path / "out", kv_heads)
    written = json.loads((folder / "config.json").read_text())["per_layer_config"]
    assert [int(layer) for layer in written] == [i for i, n in enumerate(kv_heads) if n < 4]
    assert heads_of(load(folder).config) == kv_heads


@pytest.mark.parametrize("model_type", GROUPED)
def test_layers_that_are_left_alone_keep_the_originals_number(
    model_type: str, tmp_path: Path
) -> None:
    model = tiny_model(model_type, n_kv_heads=2)
    folder = converted(model, tmp_path / "out", (1, 2, 1))
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert heads_of(config) == (1, 2, 1)
    assert config.num_key_value_heads == 2


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_base_model_has_as_few_heads(model_type: str, tmp_path: Path) -> None:
    """vLLM builds it, by ``AutoModel``, and adds the head of the language model itself."""
    folder = converted(tiny_model(model_type), tmp_path / "out")
    whole, base = load(folder), AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    with torch.no_grad():
        hidden = whole.base_model(TOKENS, use_cache=False).last_hidden_state
        assert torch.equal(base(TOKENS, use_cache=False).last_hidden_state, hidden)
    assert {name: parameter.shape for name, parameter in base.named_parameters()} == {
        name: parameter.shape for name, parameter in whole.base_model.named_parameters()
    }


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_saved_again_it_is_the_same(model_type: str, tmp_path: Path) -> None:
    first = load(converted(tiny_model(model_type), tmp_path / "first"))
    first.save_pretrained(tmp_path / "second")
    second = load(tmp_path / "second")
    assert torch.equal(logits(second, TOKENS), logits(first, TOKENS))
    assert heads_of(second.config) == KV_HEADS
    assert AutoModel.from_pretrained(tmp_path / "second", trust_remote_code=True) is not None


def test_nothing_is_said_while_it_loads_and_generates(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """transformers warns whoever reads one number of KV heads though layers differ."""
    folder = converted(tiny_model("llama"), tmp_path / "out")
    logger = logging.getLogger("transformers")
    transformers.utils.logging.warning_once.cache_clear()
    logger.addHandler(caplog.handler)
    try:
        load(folder).generate(TOKENS, max_new_tokens=2, do_sample=False, pad_token_id=0)
    finally:
        logger.removeHandler(caplog.handler)
    assert caplog.messages == []


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_generate_makes_a_static_cache_of_the_right_sizes(model_type: str, tmp_path: Path) -> None:
    model = load(converted(tiny_model(model_type), tmp_path / "out"))
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(TOKENS, **options)
    fixed = model.generate(
        TOKENS, cache_implementation="static", return_dict_in_generate=True, **options
    )
    assert torch.equal(fixed.sequences, expected)
    heads = [layer.keys.shape[1] for layer in fixed[cache_keyword(model)].layers]
    assert heads == list(KV_HEADS)


def test_the_tokenizers_files_are_the_sources_byte_for_byte(tmp_path: Path) -> None:
    source = save(tiny_model("llama"), tmp_path / "source")
    config = source / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"of_an_older_kind": 1}))
    (source / "merges.txt").write_text("#version: 0.2\nĠ Ġ\n")
    (source / "notes.txt").write_text("no file of a tokenizer")
    loaded = load_model(str(source), device="cpu", dtype="float32")
    folder = convert_checkpoint(KV_HEADS, loaded, tmp_path / "out").folder
    for name in ("tokenizer.json", "tokenizer_config.json", "merges.txt"):
        assert (folder / name).read_bytes() == (source / name).read_bytes()
    assert not (folder / "notes.txt").exists()


@pytest.fixture
def old_folder(tmp_path: Path) -> Path:
    """A folder written before ``per_layer_config``; its weights were the same then."""
    folder = converted(tiny_model("llama"), tmp_path / "old")
    for name in ("modeling_mqa.py", "attention_mqa.py"):
        shutil.copyfile(OLD / f"{name}.txt", folder / name)
    shutil.copyfile(OLD / "config.json", folder / "config.json")
    return folder


def test_an_old_folder_loads_by_its_own_code(old_folder: Path, tmp_path: Path) -> None:
    new = load(converted(tiny_model("llama"), tmp_path / "new"))
    old = load(old_folder)
    assert torch.equal(logits(old, TOKENS), logits(new, TOKENS))
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(old.generate(TOKENS, **options), new.generate(TOKENS, **options))


def test_neither_an_old_nor_a_new_folder_can_be_converted_again(
    old_folder: Path, tmp_path: Path
) -> None:
    new = converted(tiny_model("llama"), tmp_path / "new")
    for folder in (old_folder, new):
        with pytest.raises(ModelError) as raised:
            load_model(str(folder), device="cpu")
        assert "converted by mqasearch already" in str(raised.value)
        assert "\n" not in str(raised.value)
