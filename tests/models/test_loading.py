"""Models by every kind of name, and every way in which that fails."""

import logging
import sys

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, dynamic_module_utils

from mqasearch.assets import CACHE_VARIABLE
from mqasearch.errors import ModelError, UserError
from mqasearch.models import is_remote, load_model, load_shape
from tests.models.checkpoints import edit_config, put_in_hub_cache, save, save_gguf
from tests.tiny import MODEL_TYPES, logits, tiny_model, tiny_tokens


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """An empty cache of a hub that cannot be reached."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def refusal(name: str, **options: str) -> str:
    """The one line with which loading is refused."""
    with pytest.raises(UserError) as error:
        load_model(name, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_folder_loads_as_it_was_saved(model_type, tmp_path, own_cache):
    model = tiny_model(model_type)
    folder = save(model, tmp_path / "model")
    loaded = load_model(str(folder), device="cpu", dtype="float32")
    tokens = tiny_tokens()
    torch.testing.assert_close(logits(loaded.model, tokens), logits(model, tokens))
    assert not loaded.model.training
    assert loaded.name == str(folder)
    assert load_shape(str(folder), dtype="float32") == (model_type, loaded.shape)


def test_the_fingerprint_is_the_same_in_every_dtype(tmp_path, own_cache):
    folder = str(save(tiny_model("qwen3"), tmp_path / "model"))
    loaded = [load_model(folder, device="cpu", dtype=name) for name in ("float32", "bfloat16")]
    assert loaded[0].fingerprint == loaded[1].fingerprint
    assert [model.model.dtype for model in loaded] == [torch.float32, torch.bfloat16]
    assert [model.shape.bytes_per_element for model in loaded] == [4, 2]


def test_a_gguf_file_is_the_model_it_was_made_of(tmp_path, own_cache):
    model = tiny_model("llama", n_kv_heads=2)
    path = save_gguf(model, tmp_path / "tiny.gguf")
    loaded = load_model(str(path), device="cpu", dtype="float32")
    tokens = tiny_tokens()
    torch.testing.assert_close(logits(loaded.model, tokens), logits(model, tokens))
    assert loaded.tokenizer("12").input_ids == loaded.tokenizer.convert_tokens_to_ids(["1", "2"])


def test_a_gguf_file_is_converted_once(tmp_path, own_cache, capfd):
    path = save_gguf(tiny_model("llama"), tmp_path / "tiny.gguf")
    first = load_model(str(path), device="cpu")
    assert "Converting" not in capfd.readouterr().err
    (converted,) = own_cache.rglob("model.safetensors")
    written = converted.stat()
    path.touch()
    assert load_model(str(path), device="cpu").fingerprint == first.fingerprint
    again = converted.stat()
    assert (again.st_ino, again.st_mtime_ns) == (written.st_ino, written.st_mtime_ns)


def test_another_gguf_file_of_that_name_is_converted_anew(tmp_path, own_cache):
    path = tmp_path / "tiny.gguf"
    first = load_model(str(save_gguf(tiny_model("llama"), path)), device="cpu")
    second = load_model(str(save_gguf(tiny_model("llama", seed=1), path)), device="cpu")
    assert first.fingerprint != second.fingerprint


def test_smollm_takes_spaces_before_a_digit_by_themselves(tmp_path, own_cache):
    path = save_gguf(tiny_model("llama"), tmp_path / "tiny.gguf", pre="smollm")
    tokenizer = load_model(str(path), device="cpu").tokenizer
    split = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a  12 b")
    assert [piece for piece, _ in split] == ["a", "ĠĠ", "1", "2", "Ġb"]


def test_a_file_that_is_no_gguf_is_one_line(tmp_path, own_cache):
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"GIF89a" + bytes(100))
    assert "is not a GGUF file" in refusal(str(path))
    assert not list(own_cache.rglob("*.safetensors"))


def test_a_gguf_file_of_an_unknown_architecture_is_one_line(tmp_path, own_cache):
    content = save_gguf(tiny_model("llama"), tmp_path / "tiny.gguf").read_bytes()
    path = tmp_path / "other.gguf"
    path.write_bytes(content.replace(b"llama", b"lambs"))
    assert "transformers cannot read other.gguf (lambs)" in refusal(str(path))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("smollm2-135", "did you mean 'smollm2-135m'"),
        ("SmolLM2-135M", "did you mean 'smollm2-135m'"),
        ("./nowhere", "there is no model './nowhere'"),
        ("nowhere.gguf", "there is no GGUF file nowhere.gguf"),
        ("a/b/c", "there is no model 'a/b/c'"),
        ("../up", "there is no model '../up'"),
        ("~nobody-of-that-name/model", "there is no model '~nobody-of-that-name/model'"),
        ("x/" * 5000, "there is no model 'x/x/"),
    ],
)
def test_a_name_that_can_be_no_model_is_answered_at_once(name, said, own_cache, hub_cache):
    assert said in refusal(name)


def test_a_folder_without_a_config_is_no_model(tmp_path):
    assert "holds no model" in refusal(str(tmp_path))


def test_a_config_of_an_unknown_model_type_is_one_line(tmp_path, own_cache):
    folder = save(tiny_model("llama"), tmp_path / "model")
    edit_config(folder, model_type="lambs")
    assert "lambs" in refusal(str(folder))


def test_a_checkpoint_without_a_tokenizer_is_one_line(tmp_path, own_cache):
    folder = tmp_path / "model"
    tiny_model("llama").save_pretrained(folder)
    assert f"cannot load the tokenizer of {folder}" in refusal(str(folder))


def test_an_incomplete_checkpoint_is_refused(tmp_path, own_cache):
    """transformers would fill the gap with random weights."""
    folder = save(tiny_model("llama"), tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.self_attn.v_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert "lacks 1 of the model's weights, model.layers.1.self_attn.v_proj" in refusal(str(folder))


def test_a_checkpoint_of_other_sizes_than_its_config_is_one_line(tmp_path, own_cache):
    folder = save(tiny_model("llama"), tmp_path / "model")
    edit_config(folder, intermediate_size=40)
    assert "in other sizes than its config says 9 of the model's weights" in refusal(str(folder))


def test_a_checkpoint_that_was_cut_off_is_one_line(tmp_path, own_cache):
    path = save(tiny_model("llama"), tmp_path / "model") / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert f"cannot load {path.parent}" in refusal(str(path.parent))


def test_a_config_that_is_no_json_is_one_line(tmp_path, own_cache):
    folder = save(tiny_model("llama"), tmp_path / "model")
    (folder / "config.json").write_text("{nope")
    assert "not a valid JSON file" in refusal(str(folder))


def test_quantized_weights_are_refused(tmp_path, own_cache):
    folder = save(tiny_model("llama"), tmp_path / "model")
    edit_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    assert "are quantized (gptq)" in refusal(str(folder))


@pytest.mark.parametrize("trust_remote_code", [False, True])
def test_a_converted_model_is_not_taken_for_an_original(trust_remote_code, tmp_path, own_cache):
    """Nor is its code run, or asked for."""
    folder = save(tiny_model("llama"), tmp_path / "model")
    code = {"AutoConfig": "modeling_mqa.MqaConfig"}
    edit_config(folder, model_type="llama_mqa", auto_map=code, kv_heads_per_layer=[1, 4, 2])
    for load in (load_model, load_shape):
        with pytest.raises(ModelError) as refused:
            load(str(folder), trust_remote_code=trust_remote_code)
        said = str(refused.value)
        assert said.startswith(f"{folder} was converted by mqasearch")
        assert "original" in said
        assert "mask.json" in said
        assert "\n" not in said


def test_pickled_weights_are_never_loaded(tmp_path, own_cache):
    folder = save(tiny_model("llama"), tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    assert "safetensors" in refusal(str(folder))


def test_a_hub_id_loads_from_the_hub_cache(tmp_path, own_cache, hub_cache):
    folder = save(tiny_model("llama"), tmp_path / "model")
    put_in_hub_cache(folder, hub_cache, "owner/tiny")
    loaded = load_model("owner/tiny", device="cpu")
    assert loaded.fingerprint == load_model(str(folder), device="cpu").fingerprint
    assert load_shape("owner/tiny")[0] == "llama"


def test_without_a_hub_one_line_says_so(own_cache, hub_cache, caplog):
    caplog.set_level(logging.WARNING)
    said = refusal("owner/unknown")
    assert "the hub cannot be reached" in said
    assert "smollm2-135m need no hub" in said
    assert not caplog.records


@pytest.mark.model
def test_the_embedded_model_speaks():
    loaded = load_model("smollm2-135m", device="cpu")
    assert (loaded.shape.n_layers, loaded.shape.n_heads, loaded.shape.n_kv_heads) == (30, 9, 3)
    prompt = loaded.tokenizer("The capital of France is", return_tensors="pt")
    with torch.inference_mode():
        next_token = loaded.model(**prompt).logits[0, -1].argmax()
    assert loaded.tokenizer.decode(next_token) == " Paris"


def test_too_little_memory_on_the_device_is_one_line(tmp_path, own_cache, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    folder = save(tiny_model("llama"), tmp_path / "model")
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", full)
    with pytest.raises(ModelError, match="not enough memory on the device"):
        load_model(str(folder))


@pytest.fixture
def own_modules(tmp_path, monkeypatch):
    """An empty cache of the code that comes with models."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]


def test_the_code_that_comes_with_a_model_is_part_of_it(tmp_path, own_cache, own_modules):
    def fingerprint(folder: str, body: str) -> str:
        path = save(tiny_model("llama"), tmp_path / folder)
        edit_config(path, auto_map={"AutoModelForCausalLM": "own.Own"})
        lines = "from transformers import LlamaForCausalLM", "class Own(LlamaForCausalLM):"
        (path / "own.py").write_text("\n".join([*lines, f"    {body}", ""]))
        loaded = load_model(str(path), device="cpu", trust_remote_code=True)
        assert is_remote(loaded.model)
        return loaded.fingerprint

    one = fingerprint("one", "scale = 1")
    assert fingerprint("same", "scale = 1") == one
    assert fingerprint("other", "scale = 2") != one
    plain = load_model(str(tmp_path / "one"), device="cpu")
    assert not is_remote(plain.model)
    assert plain.fingerprint != one
