"""Converted checkpoints: three ways to the same logits, loaded by transformers alone."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.cache_utils import DynamicCache, StaticCache

from mqasearch import formats
from mqasearch.checkpoint.convert import convert_checkpoint
from mqasearch.conversion import ConvertibleModel
from mqasearch.errors import MaskError, ModelError, UnknownNameError, UserError
from mqasearch.export import read_mask
from mqasearch.families import family_of
from mqasearch.formats import Options
from mqasearch.latency.transformers_runner import cache_keyword
from mqasearch.mask import KVHeads
from mqasearch.merging import Merge, merge_of
from mqasearch.models import LoadedModel, load_model
from tests.models.checkpoints import tokenizer
from tests.tiny import GROUPED, MODEL_TYPES, logits, tiny_model, tiny_tokens

KV_HEADS: KVHeads = (1, 4, 2)
TOKENS = tiny_tokens(batch=1, length=10)
FORMATS = ("hf", "expanded")


@pytest.fixture(autouse=True, scope="module")
def _own_cache_of_remote_code(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """transformers copies a checkpoint's Python files to a cache before it imports them."""
    cache = str(tmp_path_factory.mktemp("modules"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", list(sys.path))
        for module in (transformers.dynamic_module_utils, transformers.utils.hub):
            patch.setattr(module, "HF_MODULES_CACHE", cache)
        yield
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]


def loaded(model: PreTrainedModel) -> LoadedModel:
    name = f"tiny/{model.config.model_type}"
    cpu = torch.device("cpu")
    return LoadedModel(model, tokenizer(), name, "0" * 64, cpu, model.dtype)


def load(folder: Path, **options: Any) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **options)
    return model.eval()


def greedy(model: PreTrainedModel, tokens: torch.Tensor, **options: Any) -> torch.Tensor:
    return model.generate(tokens, max_new_tokens=12, do_sample=False, pad_token_id=0, **options)


def same_logits(model: PreTrainedModel, expected: torch.Tensor) -> None:
    torch.testing.assert_close(logits(model, TOKENS), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_masked_compact_and_expanded_models_are_the_same_model(
    model_type: str, tmp_path: Path
) -> None:
    model = tiny_model(model_type)
    with ConvertibleModel(model, family_of(model_type), merge_of("mean")).converted(KV_HEADS):
        expected, continued = logits(model, TOKENS), greedy(model, TOKENS)

    for name in FORMATS:
        written = convert_checkpoint(KV_HEADS, loaded(model), tmp_path / name, format=name)
        read = load(written.folder)
        same_logits(read, expected)
        assert torch.equal(greedy(read, TOKENS), continued)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_cache_holds_only_the_heads_that_are_left(model_type: str, tmp_path: Path) -> None:
    model = tiny_model(model_type)
    convert_checkpoint(KV_HEADS, loaded(model), tmp_path / "out")
    tokens = TOKENS[:, :6]  # shorter than any sliding window

    used = []
    for each in (model, load(tmp_path / "out")):
        cache = DynamicCache(config=each.config)
        with torch.no_grad():
            each(tokens, **{cache_keyword(each): cache})
        used.append([layer.keys.nbytes + layer.values.nbytes for layer in cache.layers])
        heads = [layer.keys.shape[1] for layer in cache.layers]

    assert heads == list(KV_HEADS)
    document = read_mask(tmp_path / "out" / "mask.json")
    for bytes_used, key in zip(used, ("original", "converted"), strict=True):
        assert sum(bytes_used) == tokens.shape[1] * document["kv_bytes_per_token"][key]


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_padding_eager_attention_and_a_static_cache_change_nothing(
    model_type: str, tmp_path: Path
) -> None:
    """Other paths through the attention than the plain one."""
    model = tiny_model(model_type)
    for name in FORMATS:
        convert_checkpoint(KV_HEADS, loaded(model), tmp_path / name, format=name)
    padded = torch.cat([TOKENS, tiny_tokens(seed=1, batch=1, length=10)])
    padded[1, :4] = 0
    mask = (padded != 0).long()
    expected = greedy(load(tmp_path / "expanded"), padded, attention_mask=mask)

    compact, eager = load(tmp_path / "hf"), load(tmp_path / "hf", attn_implementation="eager")

    assert torch.equal(greedy(compact, padded, attention_mask=mask), expected)
    assert torch.equal(greedy(eager, padded, attention_mask=mask), expected)
    static = StaticCache(config=compact.config, max_cache_len=32)
    fixed = greedy(compact, padded, attention_mask=mask, **{cache_keyword(compact): static})
    assert torch.equal(fixed, expected)
    assert [layer.keys.shape[1] for layer in static.layers] == list(KV_HEADS)


@pytest.mark.parametrize("model_type", GROUPED)
def test_grouped_sources(model_type: str, tmp_path: Path) -> None:
    model = tiny_model(model_type, n_kv_heads=2)
    with ConvertibleModel(model, family_of(model_type), merge_of("mean")).converted((1, 2, 1)):
        expected = logits(model, TOKENS)
    for name in FORMATS:
        convert_checkpoint((1, 2, 1), loaded(model), tmp_path / name, format=name)
        same_logits(load(tmp_path / name), expected)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_nothing_converted_is_the_original(model_type: str, name: str, tmp_path: Path) -> None:
    model = tiny_model(model_type)
    convert_checkpoint((4, 4, 4), loaded(model), tmp_path / name, format=name)
    assert torch.equal(logits(load(tmp_path / name), TOKENS), logits(model, TOKENS))


@pytest.mark.parametrize("name", FORMATS)
def test_the_live_model_stays_as_it_is(name: str, tmp_path: Path) -> None:
    model = tiny_model("gpt_neox")
    before = {n: (p, p.clone()) for n, p in model.named_parameters()}
    convert_checkpoint(KV_HEADS, loaded(model), tmp_path / "out", format=name)
    for parameter_name, parameter in model.named_parameters():
        same, copy = before[parameter_name]
        assert parameter is same
        assert torch.equal(parameter, copy)


def test_a_compact_checkpoint_saved_again_loads_again(tmp_path: Path) -> None:
    convert_checkpoint(KV_HEADS, loaded(tiny_model("llama")), tmp_path / "first")
    first = load(tmp_path / "first")
    first.save_pretrained(tmp_path / "second")
    assert torch.equal(logits(load(tmp_path / "second"), TOKENS), logits(first, TOKENS))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_dtype_is_kept(dtype: torch.dtype, tmp_path: Path) -> None:
    model = tiny_model("qwen2").to(dtype)
    written = convert_checkpoint(KV_HEADS, loaded(model), tmp_path / "out")
    read = load(tmp_path / "out")
    assert {parameter.dtype for parameter in read.parameters()} == {dtype}
    assert written.weight_bytes == sum(parameter.nbytes for parameter in read.parameters())


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("model_type", ["gemma", "opt"])
def test_shards_load_as_one(model_type: str, name: str, tmp_path: Path) -> None:
    model = tiny_model(model_type)
    whole = convert_checkpoint(KV_HEADS, loaded(model), tmp_path / "whole", format=name)
    cut = convert_checkpoint(
        KV_HEADS,
        loaded(model),
        tmp_path / "cut",
        format=name,
        options=Options(max_shard_bytes=20_000),
    )
    assert whole.weight_bytes == cut.weight_bytes
    assert len(list(cut.folder.glob("model-*.safetensors"))) > 2
    assert torch.equal(logits(load(cut.folder), TOKENS), logits(load(whole.folder), TOKENS))


def test_everything_goes_along(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.generation_config.top_k = 7
    convert_checkpoint(KV_HEADS, loaded(model), tmp_path / "out")

    read = AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert read.encode("0123") == tokenizer().encode("0123")
    assert load(tmp_path / "out").generation_config.top_k == 7
    document = read_mask(tmp_path / "out" / "mask.json")
    assert tuple(document["kv_heads"]) == KV_HEADS
    assert document["merge"] == {"name": "mean"}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "base_model: tiny/llama" in card
    assert "trust_remote_code=True" in card
    assert str(tmp_path) not in card


def test_a_converted_folder_is_known_for_what_it_is(tmp_path: Path) -> None:
    convert_checkpoint(KV_HEADS, loaded(tiny_model("llama")), tmp_path / "out")
    with pytest.raises(ModelError, match="converted by mqasearch already"):
        load_model(str(tmp_path / "out"), device="cpu")


@pytest.fixture
def mask(tmp_path: Path) -> dict[str, Any]:
    """A mask JSON with evidence, as ``export`` writes it, for a tiny Llama."""
    convert_checkpoint(KV_HEADS, loaded(tiny_model("llama")), tmp_path / "for_mask")
    document = read_mask(tmp_path / "for_mask" / "mask.json")
    scores = {"hellaswag": {"acc_norm": {"value": 0.5, "stderr": 0.01, "split": "confirmation"}}}
    baseline = {"hellaswag": {"acc_norm": {"value": 0.6, "split": "confirmation"}}}
    return document | {"merge": {"name": "first"}, "scores": scores, "baseline": baseline}


def test_a_mask_json_decides_heads_and_merge_and_goes_along(
    mask: dict[str, Any], tmp_path: Path
) -> None:
    model = tiny_model("llama")
    with ConvertibleModel(model, family_of("llama"), merge_of("first")).converted(KV_HEADS):
        expected = logits(model, TOKENS)

    convert_checkpoint(mask, loaded(model), tmp_path / "out")

    same_logits(load(tmp_path / "out"), expected)
    assert json.loads((tmp_path / "out" / "mask.json").read_text()) == mask
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| hellaswag | acc_norm | 0.500 ± 0.010 | 0.6000 | confirmation |" in card
    assert "Measured in float32:" in card


def test_another_merge_than_the_masks_leaves_its_evidence_behind(
    mask: dict[str, Any], tmp_path: Path
) -> None:
    """Scores belong to the weights that were scored."""
    convert_checkpoint(mask, loaded(tiny_model("llama")), tmp_path / "out", merge=merge_of("mean"))
    written = read_mask(tmp_path / "out" / "mask.json")
    assert written["merge"] == {"name": "mean"}
    assert not written.keys() & {"scores", "baseline", "delta"}


def test_what_was_measured_in_another_dtype_stays_behind(
    mask: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    half = tiny_model("llama").to(torch.bfloat16)
    convert_checkpoint(mask, loaded(half), tmp_path / "out")
    written = read_mask(tmp_path / "out" / "mask.json")
    assert not written.keys() & {"scores", "baseline", "delta"}
    assert (mask["dtype"], written["dtype"]) == ("float32", "bfloat16")
    for key, n_bytes in mask["kv_bytes_per_token"].items():
        assert written["kv_bytes_per_token"][key] == n_bytes / 2
    assert "0.5000" not in (tmp_path / "out" / "README.md").read_text()
    (said,) = caplog.messages
    assert "scored in float32 and is written in bfloat16" in said
    assert "--dtype float32" in said
    convert_checkpoint(written, loaded(half), tmp_path / "again")
    assert read_mask(tmp_path / "again" / "mask.json") == written


def test_of_an_older_mask_nobody_knows_the_dtype_of_its_scores(
    mask: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    older = {key: mask[key] for key in mask if key != "dtype"}
    convert_checkpoint(older, loaded(tiny_model("llama")), tmp_path / "out")
    written = read_mask(tmp_path / "out" / "mask.json")
    assert written == {key: mask[key] for key in mask if key not in ("scores", "baseline")}
    (said,) = caplog.messages
    assert "does not say in which dtype it was scored" in said
    bare = {key: older[key] for key in older if key not in ("scores", "baseline")}
    convert_checkpoint(bare, loaded(tiny_model("llama")), tmp_path / "bare")
    assert read_mask(tmp_path / "bare" / "mask.json") == written
    assert len(caplog.messages) == 1


def test_a_mask_of_another_model_is_refused(mask: dict[str, Any], tmp_path: Path) -> None:
    mask["model"]["fingerprint"] = "1" * 64
    with pytest.raises(MaskError, match="other weights of tiny/llama"):
        convert_checkpoint(mask, loaded(tiny_model("llama")), tmp_path / "out")
    mask["model"]["n_layers"] = 7
    with pytest.raises(MaskError, match="n_layers 7"):
        convert_checkpoint(mask, loaded(tiny_model("llama")), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kv_heads", [(1, 1), (3, 1, 1), (0, 1, 1)])
def test_heads_that_do_not_fit_are_refused(kv_heads: KVHeads, tmp_path: Path) -> None:
    with pytest.raises(MaskError):
        convert_checkpoint(kv_heads, loaded(tiny_model("llama")), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unknown_format_is_answered_with_the_list(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'expanded'"):
        convert_checkpoint(
            KV_HEADS, loaded(tiny_model("llama")), tmp_path / "out", format="expended"
        )


def test_a_family_that_the_format_cannot_express_is_told_which_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OnlyLlama(formats.Expanded):
        name = "narrow"
        model_types = ("llama",)

    monkeypatch.setattr(formats, "FORMATS", {**formats.FORMATS, "narrow": OnlyLlama()})
    with pytest.raises(ModelError) as raised:
        convert_checkpoint(KV_HEADS, loaded(tiny_model("gpt2")), tmp_path / "out", format="narrow")
    said, _, can = str(raised.value).partition(": ")
    assert "'narrow'" in said
    assert "gpt2" in said
    assert can == "hf, mlx, expanded"


class Interrupted(BaseException):
    """As Ctrl-C, wherever it comes."""


@pytest.mark.parametrize("after", [1, 20])
def test_an_interrupted_convert_leaves_nothing(after: int, tmp_path: Path) -> None:
    calls = iter(range(1, 1000))

    def interrupt(done: int, total: int) -> None:
        assert 0 < done <= total
        if next(calls) == after:
            raise Interrupted

    with pytest.raises(Interrupted):
        convert_checkpoint(
            KV_HEADS, loaded(tiny_model("llama")), tmp_path / "out", progress=interrupt
        )
    assert not list(tmp_path.iterdir())


def test_too_little_room_is_found_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1_000_000})
    monkeypatch.setattr("mqasearch.files.folders.shutil.disk_usage", lambda path: usage)

    def merged(self: Merge, *args: Any) -> Iterator[None]:
        raise AssertionError("a layer was merged before the room was checked")

    monkeypatch.setattr("mqasearch.merging.pooling.Mean.merge", merged)
    with pytest.raises(UserError, match=r"GB are needed and 0\.00 GB are free"):
        convert_checkpoint(KV_HEADS, loaded(tiny_model("llama")), tmp_path / "out")
    assert not list(tmp_path.iterdir())
