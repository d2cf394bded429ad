"""Healed masks: converted, converted again, applied, confirmed, built again."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Command
from lm_eval.api.task import Task

from mqasearch import api
from mqasearch.checkpoint import confirmation
from mqasearch.checkpoint.convert import convert_checkpoint
from mqasearch.checkpoint.healed_mask import told
from mqasearch.checkpoint.reproducing import reproduce
from mqasearch.conversion import ConvertibleModel, HealedLayers
from mqasearch.errors import MaskError, UserError
from mqasearch.export import read_mask
from mqasearch.families import family_of
from mqasearch.heal_recipe import Recipe
from mqasearch.healing import Healed, heal
from mqasearch.healing import healed as healed_module
from mqasearch.healing.steps import Facts
from mqasearch.merging import Place, merge_of
from mqasearch.models import LoadedModel, load_model
from mqasearch.scoring import scorers
from mqasearch.tasks import TaskLibrary
from tests.checkpoint.converting import KV_HEADS, mask_for, original
from tests.conversion.calibrated import texts
from tests.tasks.small_tasks import small_task, small_tokenizer
from tests.tiny import MODEL_TYPES, logits, tiny_model, tiny_tokens

ALIGNED = {"name": "aligned"}
TOKENS = tiny_tokens()


def load_enough(name: str, num_fewshot: int = 0, seed: int = 0) -> list[Task]:
    """As ``load_small``, with more documents: healing takes at least twelve texts."""
    return [small_task(name, n_documents=120)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a model, a calibrated mask, and caches and benchmarks of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MQASEARCH_CACHE", str(tmp_path / "cache"))
    for module in (scorers, confirmation):
        monkeypatch.setattr(module, "TaskLibrary", lambda: TaskLibrary(load_enough))
    original(tmp_path / "model")
    scored = {"scores": {"choice": {"acc": {"value": 0.5, "split": "search"}}}}
    mask_for(tmp_path / "model", tmp_path / "mask.json", ALIGNED, **scored)
    return tmp_path


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for every healing that was computed."""
    counted: list[int] = []
    make = healed_module.Healing

    def healing(*args: Any, **options: Any) -> Any:
        counted.append(1)
        return make(*args, **options)

    monkeypatch.setattr(healed_module, "Healing", healing)
    return counted


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_compact_expanded_and_live_are_the_same_healed_model(
    model_type: str, tmp_path: Path
) -> None:
    model, family, merge = tiny_model(model_type), family_of(model_type), merge_of("mean")
    recipe = Recipe(40, batch_tokens=128)
    healed = heal(ConvertibleModel(model, family, merge), KV_HEADS, texts(120), recipe)
    with ConvertibleModel(model, family, merge, healed=healed.layers).converted(KV_HEADS):
        expected = logits(model, TOKENS)
    with ConvertibleModel(model, family, merge).converted(KV_HEADS):
        assert not torch.equal(logits(model, TOKENS), expected)
    cpu = torch.device("cpu")
    loaded = LoadedModel(model, small_tokenizer(), "tiny", "0" * 64, cpu, model.dtype)
    plain = convert_checkpoint(KV_HEADS, loaded, tmp_path / "plain")
    text = {"tasks": [{"name": "choice", "num_fewshot": 0}], "n_tokens": 500, "seed": 0}
    mask = read_mask(plain.folder / "mask.json")
    mask["healed"] = {"recipe": recipe.parameters, "text": text}
    for name in ("hf", "expanded"):
        written = convert_checkpoint(mask, loaded, tmp_path / name, format=name, healed=healed)
        found = logits(api.load(written.folder), TOKENS)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_healed_mask_is_applied_to_a_live_model(folder: Path) -> None:
    compact = api.convert("mask.json", "compact", heal=20)
    expected = logits(api.load(compact.folder), TOKENS)
    live = load_model("model", device="cpu", dtype="float32").model
    before = logits(live, TOKENS)
    with api.apply(live, compact.folder / "mask.json"):
        torch.testing.assert_close(logits(live, TOKENS), expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(logits(live, TOKENS), before)


def test_the_mask_json_says_how_it_was_healed(mqasearch: Command, folder: Path) -> None:
    mqasearch("convert mask.json out --heal 12 --heal-tokens 900")
    document = read_mask(folder / "out" / "mask.json")
    healed = document["healed"]
    assert (healed["recipe"]["n_steps"], healed["text"]["n_tokens"]) == (12, 900)
    assert healed["text"]["tasks"] == document["calibration"]["tasks"]
    assert healed["steps"] <= 12
    assert 0 < healed["n_text_tokens"] < 900
    assert healed["kl"]["after"] <= healed["kl"]["before"]
    assert "scores" not in document  # of the unhealed mask
    card = (folder / "out" / "README.md").read_text()
    assert f"trained for {healed['steps']} steps" in card
    assert "choice, rolling" in card
    assert "without training" not in card


def test_it_tells_how_far_it_is(mqasearch: Command, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="mqasearch"):
        mqasearch("convert mask.json out --heal 4")
    lines = [line for line in caplog.messages if line.startswith("healing, step")]
    assert lines[0].startswith("healing, step 1 of 4: KL ")
    assert all("s a step" in line and "left" in line for line in lines)


def test_a_healed_mask_converted_again_is_healed_the_same(
    mqasearch: Command, folder: Path, runs: list[int]
) -> None:
    mqasearch("convert mask.json out --heal 12")
    mqasearch("convert out/mask.json again")
    assert len(runs) == 1
    again, out = (folder / name / "model.safetensors" for name in ("again", "out"))
    assert again.read_bytes() == out.read_bytes()
    assert read_mask(folder / "again" / "mask.json") == read_mask(folder / "out" / "mask.json")
    mqasearch("convert out/mask.json other --heal 13")
    assert len(runs) == 2
    mqasearch("convert out/mask.json plain --heal 0")
    mqasearch("convert mask.json never")
    assert len(runs) == 2
    assert "healed" not in read_mask(folder / "plain" / "mask.json")
    plain, never = (folder / name / "model.safetensors" for name in ("plain", "never"))
    assert plain.read_bytes() == never.read_bytes()


def test_a_healed_folder_is_built_again_bit_for_bit(
    mqasearch: Command, folder: Path, runs: list[int]
) -> None:
    mqasearch("convert mask.json out --heal 12")
    assert reproduce(folder / "out").identical
    assert len(runs) == 2  # not taken from the cache
    mqasearch("convert mask.json two --heal 12")
    path = folder / "two" / "reproduce.json"
    record = json.loads(path.read_text())
    record["mask"]["healed"]["recipe"]["seed"] = 1
    path.write_text(json.dumps(record))
    assert "model.safetensors" in reproduce(folder / "two").differing


def test_confirmed_on_held_out_documents(mqasearch: Command, folder: Path) -> None:
    _, printed, _ = mqasearch("convert mask.json out --heal 12 --confirm --confirmation 20")
    document = read_mask(folder / "out" / "mask.json")
    (line,) = [line for line in printed.splitlines() if line.split()[:2] == ["choice", "kl"]]
    assert line.split()[2] == "20"
    before = document["healed"]["unhealed"]
    for task, metrics in document["scores"].items():
        for metric, row in metrics.items():
            original_row = document["baseline"][task][metric]
            assert (row["split"], row["n_docs"]) == ("confirmation", 20)
            if task == "rolling":
                continue  # a perplexity is no mean over documents
            delta = document["delta"][task][metric]["value"]
            assert delta == pytest.approx(row["value"] - original_row["value"], abs=1e-9)
            gained = row["value"] - before["scores"][task][metric]["value"]
            found = document["healed"]["gained"][task][metric]["value"]
            assert found == pytest.approx(gained, abs=1e-9)
    assert document["baseline"]["choice"]["kl"]["value"] == 0
    assert document["scores"]["choice"]["kl"] != before["scores"]["choice"]["kl"]

    plain = api.convert("mask.json", "plain", confirm=20)
    assert plain.confirmation is not None
    assert plain.confirmation.unhealed is None
    kl = plain.confirmation.converted["choice"]["kl"]
    assert kl["value"] == pytest.approx(before["scores"]["choice"]["kl"]["value"])
    again = api.convert(folder / "out" / "mask.json", "again")
    assert again.confirmation is None
    assert read_mask(folder / "again" / "mask.json")["scores"] == document["scores"]


def test_a_mask_that_was_only_averaged_can_be_healed(folder: Path) -> None:
    scored = {"scores": {"choice": {"acc": {"value": 0.5, "split": "search"}}}}
    mask = mask_for(folder / "model", folder / "mean.json", {"name": "mean"}, **scored)
    api.convert(mask, "out", heal=12, confirm=20)
    document = read_mask(folder / "out" / "mask.json")
    assert list(document["scores"]) == ["choice"]
    assert document["healed"]["text"]["tasks"] == [{"name": "choice", "num_fewshot": 0}]
    assert document["merge"] == {"name": "mean"}


def test_a_mask_without_tasks_cannot(folder: Path) -> None:
    mask = mask_for(folder / "model", folder / "mean.json", {"name": "mean"})
    with pytest.raises(MaskError, match=r"names no task .*export it from its study"):
        api.convert(mask, "out", heal=12)
    with pytest.raises(UserError, match="KV heads name no task to heal"):
        api.convert(KV_HEADS, "out", model="model", heal=12)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--heal many", "heal 'many': give a number of steps, as 100, or auto"),
        ("--heal-tokens 100", "heal tokens are for a healing: give heal"),
        ("--heal 10 --heal-tokens 20", "needs 12 or more"),
        ("--confirm --confirmation 1", "give a number of documents, 2 or more, or all"),
    ],
)
def test_bad_input_is_one_line(options: str, said: str, mqasearch: Command, folder: Path) -> None:
    code, out, err = mqasearch(f"convert mask.json out {options}")
    assert (code, out) == (2, "")
    assert said in err.splitlines()[-1]
    assert not (folder / "out").exists()


def test_a_mask_of_another_model_is_refused_before_it_is_healed(
    folder: Path, runs: list[int]
) -> None:
    original(folder / "other", seed=1)
    with pytest.raises(MaskError, match="other weights"):
        api.convert("mask.json", "out", model="other", heal=12)
    assert runs == []


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_scores_of_a_healing_on_another_device_are_left_out(device: str) -> None:
    """The training gives other weights there."""
    facts = Facts(8, 4, 100, 50, 0.5, 0.2, "all steps done", 1.0)
    healed = Healed(HealedLayers({}, ""), facts, Place("cpu", 1))
    document = {"scores": {"t": {}}, "healed": {"recipe": {}, "text": {}, "device": device}}
    found = told(document, healed)
    assert ("scores" in found) == (device == "cpu")
    assert found["healed"]["device"] == "cpu"
