"""Aligned and refitted weights in checkpoints (merging.md, law 9), and the command that writes."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from huggingface_hub import constants
from transformers import AutoModelForCausalLM

from mqasearch import api, cli
from mqasearch.checkpoint.convert import convert_checkpoint, with_refit
from mqasearch.conversion import ConvertibleModel, calibrate, refit_sequential
from mqasearch.errors import UnknownNameError
from mqasearch.export import read_mask
from mqasearch.families import AttentionWeights, family_of
from mqasearch.merging import Merge, merge_of
from mqasearch.models import LoadedModel
from mqasearch.score import TaskSpec
from mqasearch.scoring import scorers
from mqasearch.tasks import TaskLibrary, calibration_tokens
from tests.conversion.calibrated import texts
from tests.models.checkpoints import edit_config, put_in_hub_cache
from tests.tasks.small_tasks import load_small, small_tokenizer
from tests.tiny import MODEL_TYPES, logits, tiny_model, tiny_tokens

ALIGNED = merge_of("aligned")
TOKENS = tiny_tokens()
CALIBRATION = {
    "tasks": [{"name": "choice", "num_fewshot": 0}, {"name": "rolling", "num_fewshot": 0}],
    "n_tokens": 200,
    "seed": 0,
}


@pytest.fixture(autouse=True)
def _own_caches(tmp_path: Path) -> Iterator[None]:
    """Of calibrations, and of the Python files that transformers copies and imports."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MQASEARCH_CACHE", str(tmp_path / "cache"))
        patch.setattr(sys, "path", list(sys.path))
        for module in (transformers.dynamic_module_utils, transformers.utils.hub):
            patch.setattr(module, "HF_MODULES_CACHE", str(tmp_path / "modules"))
        yield
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_law_9_masked_compact_and_expanded_models_are_the_same_model(
    model_type: str, tmp_path: Path
) -> None:
    model, family, kv_heads = tiny_model(model_type), family_of(model_type), (1, 4, 2)
    statistics = calibrate(model, family, texts(40), ALIGNED, targets=(1, 2))
    with ConvertibleModel(model, family, ALIGNED, statistics).converted(kv_heads):
        expected = logits(model, TOKENS)
    cpu = torch.device("cpu")
    loaded = LoadedModel(model, small_tokenizer(), "tiny", "0" * 64, cpu, model.dtype)
    for name in ("hf", "expanded"):
        written = convert_checkpoint(
            kv_heads, loaded, tmp_path / name, format=name, merge=ALIGNED, statistics=statistics
        )
        found = logits(load(written.folder), TOKENS)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        document = read_mask(tmp_path / name / "mask.json")
        assert document["calibration"] == {"digest": statistics.digest}


def command(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["mqasearch", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.fixture
def mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A mask of a calibrated study on a tiny model, with its scores."""
    monkeypatch.setattr(scorers, "TaskLibrary", lambda: TaskLibrary(load_small))
    model = tiny_model("gpt_neox")
    model.save_pretrained(tmp_path / "model")
    small_tokenizer().save_pretrained(tmp_path / "model")
    loaded = scorers.load_model(str(tmp_path / "model"), device="cpu", dtype="float32")
    convert_checkpoint((1, 4, 2), loaded, tmp_path / "plain")
    document = read_mask(tmp_path / "plain" / "mask.json")
    document |= {"merge": {"name": "aligned"}, "calibration": CALIBRATION | {"digest": ""}}
    statistics = scorers.calibrate_for_mask(loaded, document)
    assert statistics is not None
    document["calibration"]["digest"] = statistics.digest
    document["scores"] = {"choice": {"acc": {"value": 0.5, "split": "search"}}}
    (tmp_path / "mask.json").write_text(json.dumps(document))
    return tmp_path / "mask.json"


@pytest.mark.parametrize("name", ["hf", "expanded"])
def test_the_command_writes_the_model_that_was_scored(
    name: str,
    mask: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    loaded = scorers.load_model(str(tmp_path / "model"), device="cpu", dtype="float32")
    statistics = scorers.calibrate_for_mask(loaded, read_mask(mask))
    convertible = ConvertibleModel(loaded.model, family_of("gpt_neox"), ALIGNED, statistics)
    with convertible.converted((1, 4, 2)):
        expected = logits(loaded.model, TOKENS)

    code = command(
        monkeypatch, "convert", mask, tmp_path / "out", "--format", name, "--dtype", "float32"
    )

    assert code == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"{tmp_path / 'out'}: {name}, ")
    assert "WARNING" not in err
    found = logits(load(tmp_path / "out"), TOKENS)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert json.loads((tmp_path / "out" / "mask.json").read_text()) == json.loads(mask.read_text())


@pytest.mark.parametrize("given", [None, "float32", "bfloat16"])
def test_it_is_written_in_the_dtype_that_was_scored_unless_another_is_asked_for(
    given: str | None, mask: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = json.loads(mask.read_text()) | {"dtype": "bfloat16"}
    mask.write_text(json.dumps(document))
    words = () if given is None else ("--dtype", given)
    assert command(monkeypatch, "convert", mask, tmp_path / "out", *words) == 0
    written = read_mask(tmp_path / "out" / "mask.json")
    assert written["dtype"] == (given or "bfloat16")
    assert ("scores" in written) == (given != "float32")
    assert load(tmp_path / "out").dtype == getattr(torch, written["dtype"])


def test_a_mask_converted_from_other_texts_can_be_converted_again(
    mask: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its calibration was made of is kept, though it is not the one that was scored."""
    document = json.loads(mask.read_text())
    mask.write_text(json.dumps(document | {"calibration": CALIBRATION | {"digest": "0" * 64}}))

    assert command(monkeypatch, "convert", mask, tmp_path / "out", "--dtype", "float32") == 0
    written = read_mask(tmp_path / "out" / "mask.json")
    again = command(
        monkeypatch, "convert", tmp_path / "out/mask.json", tmp_path / "2", "--dtype", "float32"
    )

    assert written["calibration"] == document["calibration"]
    assert "scores" not in written
    assert again == 0
    assert read_mask(tmp_path / "2" / "mask.json") == written


def original(tmp_path: Path) -> LoadedModel:
    return scorers.load_model(str(tmp_path / "model"), device="cpu", dtype="float32")


def converted(tmp_path: Path, mask: Path, *options: str) -> list[AttentionWeights]:
    """The attention layers of what the command writes."""
    with pytest.MonkeyPatch.context() as patch:
        words = (mask, tmp_path / "out", "--format", "expanded", "--dtype", "float32", *options)
        assert command(patch, "convert", *words) == 0
    model, family = load(tmp_path / "out"), family_of("gpt_neox")
    return [family.read(family.attention(block)) for block in family.blocks(model)]


def same_layers(found: list[AttentionWeights], expected: list[AttentionWeights]) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        for name, tensor in theirs.replicated(4).tensors().items():
            torch.testing.assert_close(mine.tensors()[name], tensor.float(), atol=1e-6, rtol=1e-5)


def merged(loaded: LoadedModel, merge: Merge) -> dict[int, AttentionWeights]:
    """Every layer as the merge alone leaves it."""
    statistics = calibrate(loaded.model, family_of("gpt_neox"), sequences(loaded), merge)
    convertible = ConvertibleModel(loaded.model, family_of("gpt_neox"), merge, statistics)
    return {layer: convertible.merged(layer, heads) for layer, heads in enumerate((1, 4, 2))}


def sequences(loaded: LoadedModel) -> list[list[int]]:
    tasks = [TaskSpec("choice"), TaskSpec("rolling")]
    return calibration_tokens(loaded.tokenizer, tasks, 200, library=TaskLibrary(load_small))


@pytest.mark.parametrize("options", [["--no-refit"], ["--refit", "none"]])
def test_without_refit_layers_are_merged_only(
    options: list[str], mask: Path, tmp_path: Path
) -> None:
    expected = merged(original(tmp_path), merge_of("aligned", refit=False))

    same_layers(converted(tmp_path, mask, *options), list(expected.values()))

    written = read_mask(tmp_path / "out" / "mask.json")
    assert written["merge"] == {"name": "aligned", "refit": False, "first_token": 64.0}
    assert written["calibration"] == read_mask(mask)["calibration"]
    assert "scores" not in written


def test_the_sequential_refit_is_that_of_the_masks_layers(mask: Path, tmp_path: Path) -> None:
    loaded = original(tmp_path)
    expected = merged(loaded, merge_of("aligned", refit=False))
    chosen = {layer: expected[layer] for layer in (0, 2)}
    expected |= refit_sequential(loaded.model, family_of("gpt_neox"), chosen, sequences(loaded))

    layers = converted(tmp_path, mask, "--refit", "sequential")

    same_layers(layers, list(expected.values()))
    written = read_mask(tmp_path / "out" / "mask.json")
    assert written["refit"] == "sequential"
    assert written["merge"] == {"name": "aligned", "refit": True, "first_token": 64.0}
    assert "scores" not in written
    (tmp_path / "out").rename(tmp_path / "first")
    again = converted(tmp_path, tmp_path / "first" / "mask.json")
    same_layers(again, list(expected.values()))
    assert read_mask(tmp_path / "out" / "mask.json") == written


def test_a_refit_that_changes_nothing_keeps_the_scores(mask: Path) -> None:
    document = read_mask(mask)
    assert with_refit(document, "parallel") == document
    sequential = with_refit(document, "sequential")
    assert with_refit(sequential, "sequential") == sequential
    bare = document | {"merge": {"name": "mean"}}
    assert with_refit(bare, "none") == bare
    tuned = document | {"merge": {"name": "aligned", "tune": True}}
    assert with_refit(tuned, "parallel") == tuned
    for other in ("sequential", "none"):  # only the parallel refit is tuned
        assert "tune" not in with_refit(tuned, other)["merge"]
    back = with_refit(sequential, "parallel")
    assert "refit" not in back
    assert merge_of(**back["merge"]) == ALIGNED
    with pytest.raises(UnknownNameError, match="did you mean 'sequential'"):
        with_refit(document, "sequentiel")


def test_a_study_on_a_revision_is_converted_from_that_revision(
    mask: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    put_in_hub_cache(tmp_path / "model", tmp_path / "hub", "owner/tiny")
    refs = tmp_path / "hub" / "models--owner--tiny" / "refs"
    (refs / "main").rename(refs / "v2")  # so that the default branch is not there
    document = json.loads(mask.read_text())
    document["model"]["id"] = "owner/tiny"
    mask.write_text(json.dumps(document))
    words = ("--dtype", "float32")

    assert command(monkeypatch, "convert", mask, tmp_path / "none", *words) == 2
    assert "has moved, say where: --model" in capsys.readouterr().err
    given = command(monkeypatch, "convert", mask, tmp_path / "a", *words, "--revision", "v2")
    assert given == 0
    kept = tmp_path / "a" / "mask.json"
    assert read_mask(kept)["model"]["revision"] == "v2"
    assert command(monkeypatch, "convert", kept, tmp_path / "b", *words) == 0
    assert read_mask(tmp_path / "b" / "mask.json") == read_mask(kept)


OWN_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "llama"

class OwnLlama(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.mark.parametrize("name", ["hf", "expanded"])
def test_a_model_with_its_own_code_is_converted_where_that_is_allowed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "own")
    small_tokenizer().save_pretrained(tmp_path / "own")
    (tmp_path / "own" / "modeling_own.py").write_text(OWN_CODE)
    code = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnLlama"}
    edit_config(tmp_path / "own", auto_map=code)
    own = scorers.load_model(
        str(tmp_path / "own"), device="cpu", dtype="float32", trust_remote_code=True
    )
    assert type(own.model).__name__ == "OwnLlama"
    convert_checkpoint((1, 4, 2), own, tmp_path / "first", format=name)
    words = ("--format", name, "--dtype", "float32", "--trust-remote-code")

    kept = tmp_path / "first" / "mask.json"
    assert command(monkeypatch, "convert", kept, tmp_path / "out", *words) == 0

    assert "does not go along" in caplog.text
    with ConvertibleModel(model, family_of("llama"), merge_of("mean")).converted((1, 4, 2)):
        expected = logits(model, TOKENS)
    torch.testing.assert_close(
        logits(load(tmp_path / "out"), TOKENS), expected, atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("room", [0, 64_010_000])
def test_too_little_room_is_found_before_anything_is_calibrated(
    room: int, mask: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": room})

    def calibrated(*_: object) -> None:
        raise AssertionError("calibrated before the room was checked")

    monkeypatch.setattr("mqasearch.files.folders.shutil.disk_usage", lambda path: usage)
    monkeypatch.setattr(api, "calibrate_for_mask", calibrated)
    assert command(monkeypatch, "convert", mask, tmp_path / "out") == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["missing.json", "out"], "missing.json: no such file"),
        (["mask.json", "mask.json/x/y"], "mask.json is a file, not a folder"),
        (["mask.json", "out", "--format", "expended"], "did you mean 'expanded'"),
        (["mask.json", "model"], "model"),
        (["mask.json", "out", "--model", "./nowhere"], "./nowhere"),
        (["mask.json"], "OUT_DIR"),
        (["mask.json", "out", "--refit", "sequentiel"], "did you mean 'sequential'"),
        (["mask.json", "out", "--refit", "parallel", "--no-refit"], "exclude each other"),
        (["mask.json", "out", "--selector", "gredy"], "names no selector"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    words: list[str],
    message: str,
    mask: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command(monkeypatch, "convert", *words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()
