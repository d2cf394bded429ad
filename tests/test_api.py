"""``mqasearch.load``, ``apply`` and ``convert``, as the docstrings show them."""

import doctest
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import run_here
from transformers import AutoTokenizer, PreTrainedModel
from transformers.cache_utils import DynamicCache

import mqasearch
from mqasearch import api
from mqasearch.checkpoint import convert_checkpoint
from mqasearch.conversion import ConvertibleModel
from mqasearch.errors import MaskError, ModelError, UserError
from mqasearch.export import read_mask
from mqasearch.families import family_of
from mqasearch.latency.transformers_runner import cache_keyword
from mqasearch.merging import merge_of
from mqasearch.models import KV_HEADS_KEY, LoadedModel, load_model
from mqasearch.scoring import scorers
from mqasearch.tasks import TaskLibrary
from tests.checkpoint.converting import KV_HEADS, mask_for, original
from tests.models.checkpoints import edit_config
from tests.tasks.small_tasks import load_small, small_tokenizer
from tests.tiny import MODEL_TYPES, logits, tiny_model, tiny_tokens

ALIGNED = {"name": "aligned"}
TOKENS = tiny_tokens(batch=1, length=10)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with an original and a calibrated mask of it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MQASEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(scorers, "TaskLibrary", lambda: TaskLibrary(load_small))
    original(tmp_path / "original")
    mask_for(tmp_path / "original", tmp_path / "mask.json", ALIGNED)
    return tmp_path


@pytest.fixture(autouse=True)
def _no_code_of_a_folder_runs() -> Iterator[None]:
    """What transformers imports from a folder gets a name that begins like this."""
    yield
    assert not [name for name in sys.modules if name.startswith("transformers_modules.converted")]


def in_memory(model: PreTrainedModel) -> LoadedModel:
    cpu = torch.device("cpu")
    return LoadedModel(model, small_tokenizer(), "tiny/x", "0" * 64, cpu, model.dtype)


def live(folder: Path) -> PreTrainedModel:
    return load_model(str(folder), device="cpu", dtype="float32").model


def merged_by_mean(model: PreTrainedModel) -> torch.Tensor:
    family = family_of(model.config.model_type)
    with ConvertibleModel(model, family, merge_of("mean")).converted(KV_HEADS):
        return logits(model, TOKENS)


@pytest.mark.processes
def test_importing_the_package_imports_nothing_heavy() -> None:
    heavy = {"torch", "transformers", "optuna", "lm_eval", "sqlalchemy", "numpy", "jsonschema"}
    code = (
        "import sys, mqasearch; names = dir(mqasearch), mqasearch.__version__;"
        f"sys.stdout.write(' '.join(m for m in sys.modules if m in {heavy!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""


def test_what_the_package_offers_is_what_it_lists() -> None:
    assert set(mqasearch.__all__) == {*api.__all__, "__version__"}
    assert set(mqasearch.__all__) <= set(dir(mqasearch))
    everything: dict[str, Any] = {}
    exec("from mqasearch import *", everything)
    assert set(mqasearch.__all__) <= everything.keys()
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = mqasearch.lod  # type: ignore[attr-defined]


def test_the_docstrings_examples_run_as_shown(folder: Path) -> None:
    names = {"mqasearch": mqasearch, "tokenizer": small_tokenizer()}
    names["tokenizer"].model_input_names = ["input_ids", "attention_mask"]
    finder, runner = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner()
    for function in (api.convert, api.load, api.apply):
        (example,) = finder.find(function, globs=dict(names))
        assert example.examples, function
        example.globs.setdefault("model", None)
        if function is api.apply:
            model = live(folder / "original")
            inputs = names["tokenizer"]("w1 w2", return_tensors="pt")
            example.globs |= {"model": model, "inputs": inputs}
        assert runner.run(example).failed == 0


@pytest.mark.long
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_loaded_folder_is_the_converted_model(model_type: str, tmp_path: Path) -> None:
    model = tiny_model(model_type)
    expected = merged_by_mean(model)
    for name in ("hf", "expanded"):
        written = convert_checkpoint(KV_HEADS, in_memory(model), tmp_path / name, format=name)
        for file in written.folder.glob("*.py"):
            file.write_text("raise AssertionError('code of the folder runs')")
        for attention in (None, "eager"):
            read = mqasearch.load(written.folder, attn_implementation=attention)
            torch.testing.assert_close(logits(read, TOKENS), expected, atol=1e-4, rtol=1e-4)
            assert not read.training
        cache = DynamicCache(config=read.config)
        options = {"max_new_tokens": 4, "pad_token_id": 0, cache_keyword(read): cache}
        tokens = read.generate(TOKENS, **options)
        assert tokens.shape == (1, 14)
        heads = [layer.keys.shape[1] for layer in cache.layers]
        assert heads == (list(KV_HEADS) if name == "hf" else [4, 4, 4])


def test_a_nemotron_is_loaded_as_the_llama_that_it_is(folder: Path) -> None:
    mqasearch.convert(KV_HEADS, "out", model="original", dtype="float32")
    expected = logits(mqasearch.load("out"), TOKENS)
    config = json.loads(Path("out/config.json").read_text())
    groups = [config["num_attention_heads"] // heads for heads in config.pop(KV_HEADS_KEY)]
    blocks = [{"attention": {"n_heads_in_group": group}} for group in groups]
    names = {"architectures": ["DeciLMForCausalLM"], "model_type": "nemotron-nas"}
    Path("out/config.json").write_text(json.dumps(config | names | {"block_configs": blocks}))
    assert torch.equal(logits(mqasearch.load("out"), TOKENS), expected)


def test_the_tokenizer_of_a_loaded_folder_asks_for_no_trust(folder: Path) -> None:
    mqasearch.convert(KV_HEADS, "converted", model="original")
    config = mqasearch.load("converted").config
    assert AutoTokenizer.from_pretrained("converted", config=config).encode("w1") == [4]


def test_a_folder_is_loaded_in_the_dtype_that_it_was_written_in(folder: Path) -> None:
    mqasearch.convert(KV_HEADS, "out", model="original", dtype="bfloat16")
    assert mqasearch.load("out").dtype == torch.bfloat16
    assert mqasearch.load("out", dtype="float32").dtype == torch.float32


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "there is no folder nowhere"),
        ("original", "has no mask.json"),
        ("other", "written for another program than transformers"),
        ("foreign", "written for another program than transformers"),
        ("broken", "cannot be read"),
        ("holes", "lacks 1 of the model's weights"),
    ],
)
def test_a_folder_that_cannot_be_loaded_is_said_in_one_line(
    name: str, message: str, folder: Path
) -> None:
    for each in ("other", "foreign", "broken", "holes"):
        mqasearch.convert(KV_HEADS, each, model="original", format="expanded")
    Path("other/config.json").unlink()
    edit_config(folder / "foreign", model_type="deci")
    Path("broken/config.json").write_text("{")
    rename_tensor(folder / "holes" / "model.safetensors", "model.norm.weight")
    with pytest.raises(UserError, match=message) as raised:
        mqasearch.load(name)
    assert "\n" not in str(raised.value)
    with pytest.raises(ModelError, match="device"):
        mqasearch.load("original", device="gpu")


def rename_tensor(path: Path, tensor: str) -> None:
    """In a safetensors file, so that the model lacks it."""
    content = path.read_bytes()
    path.write_bytes(content.replace(tensor.encode(), b"x" * len(tensor)))


@pytest.mark.parametrize("how", ["path", "dict", "heads"])
def test_a_mask_is_applied_and_taken_back(how: str, folder: Path) -> None:
    mask_for(folder / "original", folder / "mean.json", {"name": "mean"})
    mask: Any = {"path": "mean.json", "dict": read_mask(Path("mean.json")), "heads": KV_HEADS}[how]
    model = live(folder / "original")
    before, expected = logits(model, TOKENS), merged_by_mean(model)
    parameters = dict(model.named_parameters())

    with mqasearch.apply(model, mask) as applied:
        assert applied.model is model
        assert applied.kv_heads == KV_HEADS
        assert torch.equal(logits(model, TOKENS), expected)
    assert torch.equal(logits(model, TOKENS), before)

    applied = mqasearch.apply(model, mask)
    assert torch.equal(logits(model, TOKENS), expected)
    applied.restore()
    applied.restore()
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())


def test_an_error_within_the_block_takes_the_mask_back(folder: Path) -> None:
    model = live(folder / "original")
    before = logits(model, TOKENS)
    with pytest.raises(ZeroDivisionError), mqasearch.apply(model, KV_HEADS):
        _ = 1 / 0
    assert torch.equal(logits(model, TOKENS), before)


@pytest.mark.parametrize("given", [True, False])
def test_a_calibrated_mask_gives_the_model_that_convert_writes(given: bool, folder: Path) -> None:
    mqasearch.convert("mask.json", "converted")
    written = mqasearch.load("converted")
    model = live(folder / "original").train()
    tokenizer = small_tokenizer() if given else None
    with mqasearch.apply(model, "mask.json", tokenizer=tokenizer):
        assert model.training
        found = logits(model, TOKENS)
    torch.testing.assert_close(found, logits(written, TOKENS), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found, merged_by_mean(model), atol=1e-2)


def test_a_tokenizer_that_is_needed_and_not_known_is_asked_for(folder: Path) -> None:
    model = tiny_model("llama")
    with pytest.raises(UserError, match="tokenizer is not known: give tokenizer="):
        mqasearch.apply(model, "mask.json")
    model.name_or_path = str(folder / "cache")
    with pytest.raises(UserError, match=r"cannot be loaded from .*cache: give tokenizer="):
        mqasearch.apply(model, "mask.json")


def test_one_mask_at_a_time(folder: Path) -> None:
    model = live(folder / "original")
    with mqasearch.apply(model, KV_HEADS):
        for mask in (KV_HEADS, "mask.json"):
            with pytest.raises(UserError, match="applied to this model already"):
                mqasearch.apply(model, mask)
    with mqasearch.apply(model, (4, 4, 1)), mqasearch.apply(live(folder / "original"), KV_HEADS):
        pass


def test_a_mask_that_does_not_fit_leaves_the_model_alone(folder: Path) -> None:
    model = live(folder / "original")
    before = logits(model, TOKENS)
    document = json.loads(Path("mask.json").read_text())
    document["model"]["n_kv_heads"] = 8
    broken = document | {"kv_heads": [1]}
    for mask in ((1, 1), (3, 4, 4), document, broken, {"mask": []}):
        with pytest.raises(MaskError):
            mqasearch.apply(model, mask)
    with pytest.raises(UserError, match="give its path"):
        mqasearch.apply(model, document, selector="greedy")
    assert torch.equal(logits(model, TOKENS), before)
    with mqasearch.apply(model, KV_HEADS):
        pass


@pytest.mark.long
@pytest.mark.parametrize(
    ("line", "options"),
    [
        ("", {}),
        ("--format expanded --dtype bfloat16", {"format": "expanded", "dtype": "bfloat16"}),
        ("--refit sequential", {"refit": "sequential"}),
        ("--model original --no-refit", {"model": "original", "refit": "none"}),
    ],
)
def test_convert_writes_what_the_command_writes(
    line: str, options: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = list[tuple[int, int]]()

    def progress(done: int, total: int) -> None:
        seen.append((done, total))

    checkpoint = mqasearch.convert("mask.json", "mine", progress=progress, **options)
    assert run_here(f"convert mask.json theirs {line}", monkeypatch) == 0
    names = [sorted(file.name for file in Path(each).iterdir()) for each in ("mine", "theirs")]
    assert names[0] == names[1]
    for name in names[0]:
        assert Path("mine", name).read_bytes() == Path("theirs", name).read_bytes(), name
    assert checkpoint.folder == Path("mine")
    assert seen[-1] == (checkpoint.weight_bytes, checkpoint.weight_bytes)


def test_kv_heads_need_a_model(folder: Path) -> None:
    with pytest.raises(UserError, match="give model="):
        mqasearch.convert(KV_HEADS, "out")
    with pytest.raises(UserError, match="no refit"):
        mqasearch.convert(KV_HEADS, "out", model="original", refit="none")
    assert not Path("out").exists()
