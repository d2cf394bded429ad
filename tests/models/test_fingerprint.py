"""When two models count as the same, and when not."""

import json
import os
import shutil
import struct

import pytest
import torch
from transformers import AutoConfig

from mqasearch.assets import CACHE_VARIABLE
from mqasearch.errors import ModelError
from mqasearch.models import fingerprint, fingerprint_of
from tests.models.checkpoints import edit_config, save
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


def test_weights_are_read_once_until_they_change(folder, monkeypatch):
    before = of(folder)
    with monkeypatch.context() as patched:
        patched.setattr(fingerprint, "_weights_digest", lambda files: pytest.fail("read twice"))
        assert of(folder) == before
    other = save(tiny_model("llama", seed=1), folder)
    os.utime(other / "model.safetensors", ns=(1, 1))
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
