"""``nemotron-nas``: what engines read from the folder is the masked model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from mqasearch.checkpoint import convert_checkpoint
from mqasearch.conversion import ConvertibleModel
from mqasearch.errors import ModelError
from mqasearch.families import family_of
from mqasearch.mask import KVHeads
from mqasearch.merging import merge_of
from mqasearch.models import LoadedModel, load_model
from tests.models.checkpoints import tokenizer
from tests.tiny import logits, tiny_tokens

TOKENS = tiny_tokens(batch=2, length=30)
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LINEAR = {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0}


def model_of(model_type: str, **fields: Any) -> PreTrainedModel:
    """Random weights of sizes that the architecture has a place for."""
    sizes = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if model_type == "mistral":
        sizes["sliding_window"] = 64
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = AutoConfig.for_model(model_type, **(sizes | fields))
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for name, parameter in model.named_parameters():
            scale = "norm" in name
            torch.nn.init.normal_(parameter, mean=float(scale), std=0.2)
    assert isinstance(model, PreTrainedModel)
    return model.eval()


def written(
    model: PreTrainedModel, kv_heads: KVHeads, folder: Path, **options: Any
) -> dict[str, Any]:
    """config.json of the converted model."""
    name = f"tiny/{model.config.model_type}"
    cpu = torch.device("cpu")
    loaded = LoadedModel(model, tokenizer(), name, "0" * 64, cpu, model.dtype)
    convert_checkpoint(kv_heads, loaded, folder, format="nemotron-nas", **options)
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


def as_engines_read(folder: Path) -> PreTrainedModel:
    """A Llama by the folder's config.json, with every head repeated up to the query heads."""
    config = json.loads((folder / "config.json").read_text())
    blocks = config.pop("block_configs")
    for key in ("model_type", "auto_map", "architectures"):
        del config[key]
    llama = AutoConfig.for_model("llama", num_key_value_heads=None, **config)
    model = AutoModelForCausalLM.from_config(llama, dtype=torch.float32)
    tensors = load_file(folder / "model.safetensors")
    for layer, block in enumerate(blocks):
        group = block["attention"]["n_heads_in_group"]
        for projection in ("k_proj", "v_proj"):
            for kind in ("weight", "bias"):
                name = f"model.layers.{layer}.self_attn.{projection}.{kind}"
                if name in tensors:
                    heads = tensors[name].unflatten(0, (-1, llama.head_dim))
                    tensors[name] = heads.repeat_interleave(group, dim=0).flatten(0, 1)
    if config["tie_word_embeddings"]:
        assert "lm_head.weight" not in tensors
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    model.load_state_dict(tensors)
    assert isinstance(model, PreTrainedModel)
    return model.eval()


@pytest.mark.parametrize(
    ("model_type", "fields"),
    [
        ("llama", {}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("llama", {"rope_parameters": LLAMA3, "rms_norm_eps": 1e-3}),
        ("llama", {"rope_parameters": LINEAR, "tie_word_embeddings": True}),
        ("mistral", {}),
        ("qwen2", {}),
        ("qwen2", {"tie_word_embeddings": True}),
    ],
)
@pytest.mark.parametrize(("n_kv_heads", "kv_heads"), [(4, (1, 4, 2)), (2, (1, 2, 1))])
def test_a_llama_with_the_folders_tensors_is_the_masked_model(
    model_type: str, fields: dict[str, Any], n_kv_heads: int, kv_heads: KVHeads, tmp_path: Path
) -> None:
    model = model_of(model_type, num_key_value_heads=n_kv_heads, **fields)
    with ConvertibleModel(model, family_of(model_type), merge_of("mean")).converted(kv_heads):
        expected = logits(model, TOKENS)

    config = written(model, kv_heads, tmp_path / "out")

    groups = [block["attention"]["n_heads_in_group"] for block in config["block_configs"]]
    assert groups == [4 // heads for heads in kv_heads]
    read = as_engines_read(tmp_path / "out")
    torch.testing.assert_close(logits(read, TOKENS), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("hidden_size", [32, 40, 56, 88])
@pytest.mark.parametrize("intermediate_size", [256, 768, 1792, 18944])
def test_engines_make_the_intermediate_size_of_the_factor(
    hidden_size: int, intermediate_size: int, tmp_path: Path
) -> None:
    """vLLM takes the factor as it is, MLX-LM rounds it to six digits; both round sizes up."""
    model = model_of("llama", hidden_size=hidden_size, intermediate_size=intermediate_size)
    config = written(model, (1, 4, 2), tmp_path / "out")
    for block in config["block_configs"]:
        for factor in (block["ffn"]["ffn_mult"], round(block["ffn"]["ffn_mult"], 6)):
            size = int(2 * factor * hidden_size / 3)
            assert size + -size % 256 == intermediate_size


def test_the_code_of_the_folder_gives_engines_a_config_with_attributes(tmp_path: Path) -> None:
    """vLLM and TensorRT-LLM read ``block.attention.no_op``, and write configs as JSON."""
    config = written(model_of("llama", rope_parameters=LLAMA3), (1, 4, 2), tmp_path / "out")
    namespace: dict[str, Any] = {"__name__": "configuration_nemotron_nas"}
    exec((tmp_path / "out" / "configuration_nemotron_nas.py").read_text(), namespace)
    _, read = config.pop("auto_map")["AutoConfig"].split(".")

    made = namespace[read].from_dict(config)

    assert [block.attention.n_heads_in_group for block in made.block_configs] == [4, 1, 2]
    assert not any(block.attention.no_op or block.ffn.no_op for block in made.block_configs)
    assert not hasattr(made.block_configs[0].ffn, "intermediate_size")
    assert made.rope_parameters == LLAMA3
    assert made.head_dim == 8
    again = json.loads(made.to_json_string())
    assert again["block_configs"] == config["block_configs"]
    assert again["model_type"] == "nemotron-nas"


@pytest.mark.parametrize(
    ("model_type", "fields", "fault"),
    [
        ("llama", {"intermediate_size": 300}, "intermediate size 300 is no multiple of 256"),
        ("llama", {"head_dim": 16}, "head dimension 16 is not its hidden size 32 divided by its 4"),
        ("llama", {"hidden_act": "gelu"}, "activation is 'gelu', not 'silu'"),
        ("mistral", {"sliding_window": 63}, "slides over 63 tokens"),
        (
            "qwen2",
            {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
            "slides over 8 tokens",
        ),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "rotary embedding is of type 'dynamic', not default, linear, llama3",
        ),
    ],
)
def test_what_an_engine_would_misread_is_found_before_anything_is_written(
    model_type: str, fields: dict[str, Any], fault: str, tmp_path: Path
) -> None:
    model = model_of(model_type, **fields)
    with pytest.raises(ModelError) as raised:
        written(model, (1, 4, 2), tmp_path / "out")
    said = str(raised.value)
    assert fault in said
    able = said.split("formats that can: ")[1].split(", ")
    assert {"hf", "expanded"} <= {*able}
    assert "nemotron-nas" not in able
    assert not (tmp_path / "out").exists()


def test_the_folder_is_whole(tmp_path: Path) -> None:
    """Its tokenizer loads without its code being trusted, and it is known for a conversion."""
    written(model_of("llama"), (1, 4, 2), tmp_path / "out")
    read = AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=False)
    assert read.encode("0123") == tokenizer().encode("0123")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "vllm serve FOLDER --trust-remote-code --host 127.0.0.1\n" in card
    assert "mlx_lm.generate --model FOLDER --trust-remote-code " in card
    with pytest.raises(ModelError, match="converted by mqasearch already"):
        load_model(str(tmp_path / "out"), device="cpu")
