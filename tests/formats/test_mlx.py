"""``mlx``: what MLX-LM reads from the folder is the masked model."""

import ast
import json
from dataclasses import fields
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from mqasearch.checkpoint import convert_checkpoint
from mqasearch.conversion import ConvertibleModel
from mqasearch.errors import ModelError
from mqasearch.families import family_of
from mqasearch.formats import mlx_layers
from mqasearch.merging import merge_of
from mqasearch.models import LoadedModel
from tests.formats.test_nemotron_nas import LLAMA3, model_of
from tests.models.checkpoints import tokenizer
from tests.tiny import MODEL_TYPES, logits, tiny_model, tiny_tokens

KV_HEADS = (1, 4, 2)
TOKENS = tiny_tokens(batch=2, length=30)


def written(model: PreTrainedModel, folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and tensors of the converted model."""
    name = f"tiny/{model.config.model_type}"
    cpu = torch.device("cpu")
    loaded = LoadedModel(model, tokenizer(), name, "0" * 64, cpu, model.dtype)
    made = convert_checkpoint(KV_HEADS, loaded, folder, format="mlx")
    tensors = load_file(folder / "model.safetensors")
    assert made.weight_bytes == sum(tensor.nbytes for tensor in tensors.values())
    return json.loads((folder / "config.json").read_text()), tensors


def built(mqa: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the parameters that the folder's code makes of ``mqa``."""
    d, hidden, inner = mqa["head_dim"], mqa["hidden_size"], mqa["intermediate_size"]
    sizes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (mqa["vocab_size"], hidden)}
    if mqa["positions"]:
        sizes["model.embed_positions.weight"] = (mqa["positions"]["rows"], hidden)
    if not mqa["tied"]:
        sizes["lm_head.weight"] = (mqa["vocab_size"], hidden)

    def linear(name: str, n_in: int, n_out: int, bias: bool) -> None:
        sizes[f"{name}.weight"] = (n_out, n_in)
        if bias:
            sizes[f"{name}.bias"] = (n_out,)

    def norm(name: str, dims: int) -> None:
        sizes[f"{name}.weight"] = (dims,)
        if mqa["norm"] == "layer":
            sizes[f"{name}.bias"] = (dims,)

    norm("model.norm", hidden)
    for layer, n_kv_heads in enumerate(mqa["kv_heads"]):
        attention, mlp = (f"model.layers.{layer}.{name}" for name in ("self_attn", "mlp"))
        heads = {"q": mqa["n_heads"], "k": n_kv_heads, "v": n_kv_heads}
        for name, n_heads in heads.items():
            linear(f"{attention}.{name}_proj", hidden, n_heads * d, mqa["qkv_bias"])
        linear(f"{attention}.o_proj", mqa["n_heads"] * d, hidden, mqa["o_bias"])
        if mqa["qk_norm"]:
            norm(f"{attention}.q_norm", d)
            norm(f"{attention}.k_norm", d)
        for name in ("gate", "up") if mqa["gated"] else ("up",):
            linear(f"{mlp}.{name}_proj", hidden, inner, mqa["mlp_bias"])
        linear(f"{mlp}.down_proj", inner, hidden, mqa["mlp_bias"])
        around = ["input_layernorm", "post_attention_layernorm"]
        if mqa["post_norms"]:
            around += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
        for name in around:
            norm(f"model.layers.{layer}.{name}", hidden)
    return sizes


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_tensors_are_those_that_the_code_builds(model_type: str, tmp_path: Path) -> None:
    config, tensors = written(tiny_model(model_type), tmp_path / "out")
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == built(config["mqa"])
    assert (tmp_path / "out" / config["model_file"]).is_file()


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_nothing_of_the_original_is_lost(model_type: str, tmp_path: Path) -> None:
    """Attention is the merged one; any other tensor is there as it was, turned or in halves."""
    model = tiny_model(model_type)
    _, tensors = written(model, tmp_path / "out")
    convertible = ConvertibleModel(model, family_of(model_type), merge_of("mean"))
    for layer, heads in enumerate(KV_HEADS):
        merged = convertible.merged(layer, heads)
        for name in ("q", "k", "v"):
            stored = tensors[f"model.layers.{layer}.self_attn.{name}_proj.weight"]
            assert torch.equal(stored, getattr(merged, name).flatten(0, 1))
            bias = tensors.get(f"model.layers.{layer}.self_attn.{name}_proj.bias")
            expected = getattr(merged, f"{name}_bias")
            assert bias is expected or torch.equal(bias, expected.flatten())
    kept = {tuple(tensor.flatten().tolist()) for tensor in tensors.values()}
    attention = {
        id(parameter)
        for block in convertible.family.blocks(model)
        for parameter in convertible.family.parameters(convertible.family.attention(block)).values()
    }
    for parameter in model.parameters():
        if id(parameter) in attention:
            continue
        forms: list[tuple[Tensor, ...]] = [(parameter,)]
        if parameter.ndim == 2:
            forms += [(parameter.T,), parameter.chunk(2)]
        assert any(all(tuple(p.flatten().tolist()) in kept for p in form) for form in forms)


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2"])
def test_with_heads_repeated_it_is_the_masked_model(model_type: str, tmp_path: Path) -> None:
    model = tiny_model(model_type)
    with ConvertibleModel(model, family_of(model_type), merge_of("mean")).converted(KV_HEADS):
        expected = logits(model, TOKENS)
    config, tensors = written(model, tmp_path / "out")
    for layer, heads in enumerate(config["mqa"]["kv_heads"]):
        for name in (
            f"{projection}_proj.{kind}" for projection in "kv" for kind in ("weight", "bias")
        ):
            name = f"model.layers.{layer}.self_attn.{name}"
            if name in tensors:
                split = tensors[name].unflatten(0, (heads, -1))
                tensors[name] = split.repeat_interleave(4 // heads, dim=0).flatten(0, 1)
    stock = AutoModelForCausalLM.from_config(model.config, dtype=torch.float32).eval()
    lacking = stock.load_state_dict(tensors, strict=False)
    assert not lacking.unexpected_keys
    assert lacking.missing_keys == (["lm_head.weight"] if config["mqa"]["tied"] else [])
    torch.testing.assert_close(logits(stock, TOKENS), expected, atol=1e-4, rtol=1e-4)


def test_config_json_says_all_that_the_code_asks_for() -> None:
    code = files("mqasearch.formats").joinpath("modeling", "mlx_mqa.py.txt").read_text()
    classes = {node.name: node for node in ast.parse(code).body if isinstance(node, ast.ClassDef)}
    asked = [
        node.target.id
        for node in classes["ModelArgs"].body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    ]
    assert asked == [field.name for field in fields(mlx_layers.Layers)]


def test_windows_and_scales_are_those_of_the_original(tmp_path: Path) -> None:
    """They change numbers, but no tensor's shape."""
    config, _ = written(tiny_model("gemma2"), tmp_path / "gemma2")
    mqa = config["mqa"]
    assert mqa["windows"] == [8, None, 8]
    assert (mqa["attention_softcap"], mqa["final_softcap"]) == (50.0, 30.0)
    assert mqa["embedding_scale"] == 32**0.5
    config, _ = written(tiny_model("mistral"), tmp_path / "mistral")
    assert config["mqa"]["windows"] == [8, 8, 8]
    config, _ = written(tiny_model("gpt_neox"), tmp_path / "gpt_neox")
    assert config["mqa"]["rope"]["dims"] == 4
    assert config["mqa"]["parallel"]
    config, _ = written(tiny_model("opt"), tmp_path / "opt")
    assert config["mqa"]["positions"] == {"rows": 130, "first": 2}


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2"])
def test_where_mlx_has_the_architecture_no_code_comes_along(
    model_type: str, tmp_path: Path
) -> None:
    config, tensors = written(model_of(model_type), tmp_path / "out")
    assert config["model_type"] == "nemotron-nas"
    assert "block_configs" in config
    assert not config.keys() & {"auto_map", "model_file"}
    assert not list((tmp_path / "out").glob("*.py"))
    assert tensors["model.layers.0.self_attn.k_proj.weight"].shape[0] == 8


def test_the_tokenizer_loads_without_trust_whatever_the_rope(tmp_path: Path) -> None:
    """AutoTokenizer reads config.json too, and knows none of the architectures."""
    for name, model in {
        "nemotron": model_of("llama"),
        "llama3": model_of("llama", rope_parameters=LLAMA3),
        "gemma2": tiny_model("gemma2"),
    }.items():
        written(model, tmp_path / name)
        read = AutoTokenizer.from_pretrained(tmp_path / name, trust_remote_code=False)
        assert read.encode("0123") == tokenizer().encode("0123")


@pytest.mark.parametrize(
    ("model_type", "changes", "fault"),
    [
        ("llama", {"hidden_act": "tanh"}, "its activation is 'tanh'"),
        ("opt", {"do_layer_norm_before": False}, "its do_layer_norm_before is False"),
        ("opt", {"word_embed_proj_dim": 16}, "its embeddings have another size"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        (
            "qwen3",
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}},
            "of type 'yarn'",
        ),
    ],
)
def test_what_the_code_does_not_compute_is_refused_before_anything_is_written(
    model_type: str, changes: dict[str, Any], fault: str, tmp_path: Path
) -> None:
    model = tiny_model(model_type)
    for key, value in changes.items():
        setattr(model.config, key, value)
    with pytest.raises(ModelError, match=fault):
        written(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
