"""When two models count as the same, and when not."""

import json
import os
import shutil
import struct

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from mqasearch.assets import CACHE_VARIABLE
from mqasearch.errors import ModelError
from mqasearch.models import fingerprint, fingerprint_of, load_model
from mqasearch.models.gguf import converted
from mqasearch.scoring import tokenizer_digest
from tests.models.checkpoints import edit_config, save, save_gguf
from tests.tiny import MODEL_TYPES, tiny_model


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    return save(tiny_model("llama"), tmp_path / "model")


def of(folder) -> str:
    return fingerprint_of(folder, AutoConfig.from_pretrained(folder))


def test_it_does_not_depend_on_how_the_checkpoint_is_cut(folder, tmp_path):
    sharded = save(tiny_model("llama"), tmp_path / "sharded", max_shard_size="10KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    assert of(sharded) == of(folder)


def test_it_does_not_depend_on_the_path(folder, tmp_path):
    assert of(shutil.copytree(folder, tmp_path / "copy")) == of(folder)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_it_survives_loading_and_saving(model_type, tmp_path):
    model = tiny_model(model_type)
    once = save(model, tmp_path / "once")
    again = save(type(model).from_pretrained(once), tmp_path / "again")
    assert of(again) == of(once)


def test_one_weight_makes_another_model(folder, tmp_path):
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[1].self_attn.k_proj.weight[3, 5] += 1e-6
    assert of(save(model, tmp_path / "other")) != of(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
        {"rms_norm_eps": 1e-4},
        {"hidden_act": "gelu"},
    ],
    ids=str,
)
def test_what_the_config_computes_counts(folder, change):
    before = of(folder)
    edit_config(folder, **change)
    assert of(folder) != before


def test_bookkeeping_in_the_config_does_not_count(folder):
    before = of(folder)
    edit_config(folder, transformers_version="4.0.0", use_cache=False, dtype="bfloat16")
    assert of(folder) == before


def leaves(config, path=()):
    """Every key of a config, with those of nested ones."""
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key)


def changed(config, path):
    key, *rest = path
    return config | {key: changed(config[key], rest) if rest else "another"}


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_key_of_a_config_counts_but_those_that_cannot_matter(model_type, tmp_path):
    folder = save(tiny_model(model_type), tmp_path / "model")
    config = AutoConfig.from_pretrained(folder)
    whole = config.to_dict() | {"text_config": {"hidden_size": 32}, "not_known_yet": 1}
    seen = {}
    for path in [(), *leaves(whole)]:
        config.to_dict = lambda path=path: changed(whole, path) if path else whole
        seen[path] = fingerprint_of(folder, config)
    before = seen.pop(())
    silent = {path for path in seen if seen[path] == before}
    assert silent == {path for path in seen if path[0] in fingerprint._IRRELEVANT}
    loud = [seen[path] for path in seen if path not in silent]
    assert len(set(loud)) == len(loud) > 5
    assert ("rope_parameters", "rope_theta") in {*seen} or model_type in ("opt", "gpt2")


def test_every_key_that_cannot_matter_is_one_of_some_config():
    known = {"_commit_hash", "auto_map", "sep_token_id", "tokenizer_class", "torch_dtype"}
    known.add("unk_token_id")  # of a GGUF file
    for model_type in MODEL_TYPES:
        known |= tiny_model(model_type).config.to_dict().keys()
    assert known >= fingerprint._IRRELEVANT


def test_a_default_may_be_written_or_not(folder):
    before = of(folder)
    edit_config(folder, attention_bias=False, mlp_bias=False)
    assert of(folder) == before
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({key: config[key] for key in config if key != "mlp_bias"}))
    assert of(folder) == before


def test_how_a_text_is_continued_counts_and_where_it_was_written_does_not(folder):
    loaded = AutoModelForCausalLM.from_pretrained(folder)

    def with_generation(**changes):
        generation = GenerationConfig(**loaded.generation_config.to_dict() | changes)
        return fingerprint_of(folder, loaded.config, generation)

    before = with_generation()
    assert with_generation(repetition_penalty=1.3) != before
    assert with_generation(eos_token_id=[2, 5]) != before
    assert with_generation(pad_token_id=7, transformers_version="4.0.0") == before


def test_code_that_comes_with_the_model_counts(folder):
    config = AutoConfig.from_pretrained(folder)
    one, two = (fingerprint_of(folder, config, code=code) for code in ("x = 1", "x = 2"))
    assert len({one, two, of(folder)}) == 3


def test_a_converted_gguf_file_and_its_copy_are_one_model(tmp_path):
    path = save_gguf(tiny_model("llama", n_kv_heads=2), tmp_path / "tiny.gguf")
    loaded = load_model(str(path), device="cpu", dtype="float32")
    copy = shutil.copytree(converted(path), tmp_path / "copy")
    again = save(loaded.model, tmp_path / "again")
    for folder in (copy, again):
        other = load_model(str(folder), device="cpu", dtype="float32")
        assert other.fingerprint == loaded.fingerprint
    loaded.tokenizer.save_pretrained(tmp_path / "again")
    other = load_model(str(tmp_path / "again"), device="cpu", dtype="float32")
    assert tokenizer_digest(other.tokenizer) == tokenizer_digest(loaded.tokenizer)


def test_weights_are_read_once_until_they_change(folder):
    """A file of the same size and time is taken for the same: that of another model shows it."""
    weights = folder / "model.safetensors"
    before, written = of(folder), weights.stat()
    save(tiny_model("llama", seed=1), folder)
    assert weights.stat().st_size == written.st_size
    os.utime(weights, ns=(written.st_atime_ns, written.st_mtime_ns))
    assert of(folder) == before
    os.utime(weights, ns=(1, 1))
    assert of(folder) != before


def test_a_cache_that_cannot_be_written_costs_time_only(folder, tmp_path, monkeypatch):
    before = of(folder)
    (tmp_path / "file").touch()
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file"))
    assert of(folder) == before


def test_pickled_weights_are_not_read(tmp_path):
    folder = save(tiny_model("llama"), tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="never pickled weights") as error:
        of(folder)
    assert "\n" not in str(error.value)


def broken_header(content: bytes) -> bytes:
    return b"\xff" * 8 + content[8:]


def cut_header(content: bytes) -> bytes:
    return content[:5]


def other_json(content: bytes) -> bytes:
    header = json.dumps({"weight": {"dtype": "F32"}}).encode()
    return struct.pack("<Q", len(header)) + header


@pytest.mark.parametrize("damage", [broken_header, cut_header, other_json])
def test_a_file_of_another_format_is_one_line(folder, damage):
    path = folder / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ModelError, match="is not a safetensors file") as error:
        of(folder)
    assert "\n" not in str(error.value)


def test_a_file_that_was_cut_off_is_one_line(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match="ends within tensor"):
        of(folder)
