"""GGUF files against llama.cpp itself: the numbers, the cache, the outtypes."""

from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from mqasearch.conversion import ConvertibleModel
from mqasearch.engines.engine import Engine, Settings
from mqasearch.errors import ModelError
from mqasearch.families import family_of
from mqasearch.formats import DEFAULTS, check_expressible
from mqasearch.formats.converted import Converted
from mqasearch.merging import merge_of
from mqasearch.models import load_model
from tests.formats.gguf_models import (
    GGUF,
    KV_HEADS,
    converted_of,
    expected,
    model_of,
    rope,
    write,
)
from tests.tiny import tiny_model, tiny_tokens

TIED = {"tie_word_embeddings": True}
LINEAR = rope("linear", factor=4.0)
YARN = rope("yarn", factor=4.0, original_max_position_embeddings=32, beta_fast=16.0)
LLAMA3 = rope(
    "llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)
EXPRESSIBLE: list[tuple[str, str, dict[str, Any]]] = [
    ("deci", "llama", {}),
    ("deci", "llama", TIED),
    ("deci", "llama", {"attention_bias": True, "mlp_bias": True}),
    ("deci", "llama", {"head_dim": 16}),
    ("deci", "llama", LLAMA3),
    ("deci", "llama", LINEAR),
    ("deci", "llama", YARN),
    ("deci", "mistral", {}),
    ("deci", "mistral", {"sliding_window": 128}),
    ("deci", "qwen2", {}),
    ("deci", "qwen2", TIED),
    ("openelm", "qwen3", TIED),
    ("openelm", "qwen3", {**TIED, "head_dim": 16}),
    ("openelm", "qwen3", TIED | LINEAR),
    ("openelm", "qwen3", TIED | YARN),
    ("step35", "qwen3", {}),
    ("step35", "qwen3", {"head_dim": 16}),
]
IDS = [f"{arch}-{kind}-{'-'.join(config)}" for arch, kind, config in EXPRESSIBLE]
BIASED_QWEN3 = {"attention_bias": True}


def arch_of(path: Path) -> str:
    return str(gguf.GGUFReader(path).fields["general.architecture"].contents())


@pytest.mark.parametrize(("arch", "model_type", "config"), EXPRESSIBLE, ids=IDS)
def test_llama_cpp_computes_what_transformers_does_in_the_smaller_cache(
    arch: str, model_type: str, config: dict[str, Any], tmp_path: Path
) -> None:
    converted = converted_of(model_of(model_type, **config))
    path = write(converted, tmp_path)
    assert arch_of(path) == arch
    tokens = tiny_tokens(batch=2, length=20)
    want = expected(converted, tokens, 8)
    with Engine("llama.cpp", Settings(str(path), max_tokens=64, n_threads=1)) as engine:
        got = torch.tensor(engine.log_probs(tokens.tolist()))
        greedy = engine.generate(tokens.tolist(), 8)
        cache = engine.cache_bytes_per_token()
    assert (got - want.log_probs).abs().max() < 1e-3
    assert greedy == want.greedy
    counted = converted.convertible.shape.kv_bytes_per_token(KV_HEADS)
    assert cache == pytest.approx(counted, rel=0.02)


@pytest.mark.parametrize(
    ("outtype", "most"), [("f16", 0.02), ("bf16", 0.2), ("q8_0", 0.5)], ids=["f16", "bf16", "q8_0"]
)
def test_an_outtype_costs_what_its_rounding_does(outtype: str, most: float, tmp_path: Path) -> None:
    converted = converted_of(model_of("llama", intermediate_size=64))
    path = write(converted, tmp_path, outtype)
    tokens = tiny_tokens(batch=1, length=16)
    want = expected(converted, tokens, 1).log_probs
    with Engine("llama.cpp", Settings(str(path), max_tokens=64, n_threads=1)) as engine:
        difference = (torch.tensor(engine.log_probs(tokens.tolist())) - want).abs().max()
    assert 1e-4 < difference < most  # it is rounded, and no more than that


def test_norms_and_biases_stay_f32_and_rows_that_are_no_whole_blocks_become_f16(
    tmp_path: Path,
) -> None:
    model = model_of("llama", attention_bias=True)  # rows of 32, and of 48 in the MLP
    reader = gguf.GGUFReader(write(converted_of(model), tmp_path, "q8_0"))
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert types["blk.0.attn_norm.weight"] == types["blk.0.attn_q.bias"] == "F32"
    assert types["blk.0.ffn_down.weight"] == "F16"
    assert types["blk.0.ffn_up.weight"] == types["token_embd.weight"] == "Q8_0"


def test_the_default_outtype_is_f16(tmp_path: Path) -> None:
    converted = converted_of(model_of("llama"))
    list(GGUF.write(converted, tmp_path, DEFAULTS))
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    assert reader.fields["general.file_type"].contents() == gguf.LlamaFileType.MOSTLY_F16


def test_a_value_that_f16_cannot_hold_is_refused(tmp_path: Path) -> None:
    model = model_of("llama")
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.up_proj.weight")[3, 3] = 1e6
    with pytest.raises(ModelError, match=r"blk\.1\.ffn_up\.weight .*--outtype bf16"):
        write(converted_of(model), tmp_path, "f16")
    write(converted_of(model), tmp_path, "bf16")


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {"hidden_act": "gelu"}, "SiLU"),
    ("llama", rope("dynamic", factor=2.0), "'dynamic'"),
    ("llama", rope("yarn", factor=4.0, mscale=2.0), "mscale"),
    ("llama", rope("default", partial_rotary_factor=0.5), "all of a head's dimensions"),
    ("mistral", {"sliding_window": 8}, "sliding window .of 8 tokens"),
    (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
        "sliding window .of 8 tokens",
    ),
    ("qwen3", BIASED_QWEN3, "step35 leaves out its q_bias"),
    ("qwen3", BIASED_QWEN3 | TIED, "openelm leaves out its q_bias"),
    ("qwen3", YARN, "step35 has no RoPE of kind 'yarn'"),
    ("qwen3", LINEAR, "step35 has no RoPE of kind 'linear'"),
    ("qwen3", LLAMA3 | TIED, "openelm has no RoPE of kind 'llama3'"),
]


@pytest.mark.parametrize(
    ("model_type", "config", "words"), REFUSED, ids=[f"{r[0]}-{'-'.join(r[1])}" for r in REFUSED]
)
def test_what_llama_cpp_would_misread_is_refused_before_writing(
    model_type: str, config: dict[str, Any], words: str
) -> None:
    converted = converted_of(model_of(model_type, **config))
    with pytest.raises(ModelError, match=rf"format 'gguf' cannot .*{words}.*: .*expanded"):
        check_expressible(GGUF, converted)


@pytest.mark.parametrize("model_type", ["gemma", "gemma2", "opt", "phi3", "gpt_neox", "gpt2"])
def test_other_families_are_refused(model_type: str) -> None:
    with pytest.raises(ModelError, match="format 'gguf' cannot express"):
        check_expressible(GGUF, converted_of(tiny_model(model_type)))


def test_the_real_model_with_its_five_best_layers(tmp_path: Path) -> None:
    loaded = load_model("smollm2-135m", device="cpu", dtype="float32")
    convertible = ConvertibleModel(loaded.model, family_of("llama"), merge_of("mean"))
    kv_heads = tuple(1 if layer in (6, 7, 25, 28, 29) else 3 for layer in range(30))
    converted = Converted(convertible, kv_heads, loaded.tokenizer, loaded.folder)
    path = write(converted, tmp_path)
    text = "In 1989 the wall between East and West Berlin fell, which led to"
    tokens = torch.tensor([loaded.tokenizer(text)["input_ids"]])
    want = expected(converted, tokens, 8)
    with Engine("llama.cpp", Settings(str(path), max_tokens=128, n_threads=1)) as engine:
        got = torch.tensor(engine.log_probs(tokens.tolist()))
        greedy = engine.generate(tokens.tolist(), 8)
        cache = engine.cache_bytes_per_token()
    assert (got - want.log_probs).abs().max() < 1e-3
    assert greedy == want.greedy
    assert cache == pytest.approx(loaded.shape.kv_bytes_per_token(kv_heads), rel=0.02)
