"""What differs in a folder built again, or in what it is built from, is found and named."""

import json
from pathlib import Path

import pytest
import torch
from command_line import Command
from huggingface_hub import constants

from mqasearch import api
from mqasearch.checkpoint import reproducing
from mqasearch.checkpoint.reproduce_json import differing_inputs, read_record
from mqasearch.scoring import scorers
from mqasearch.tasks import TaskLibrary
from tests.checkpoint.changed_folder import WEIGHTS, edit_record, flip_a_byte, pretend_other_weights
from tests.checkpoint.converting import original
from tests.models.checkpoints import put_in_hub_cache
from tests.tasks.small_tasks import small_task


def test_the_command_says_so_and_leaves_nothing(mqasearch: Command, out: Path) -> None:
    before = sorted(out.parent.iterdir())
    n_files = len(read_record(out)["files"])
    code, said, err = mqasearch("reproduce out")
    assert (code, said) == (0, f"identical: {n_files} files\n"), err
    assert sorted(out.parent.iterdir()) == before


def test_a_single_file_is_enough(mqasearch: Command, out: Path) -> None:
    (out / "tokenizer.json").unlink()
    assert mqasearch(f"reproduce out/{WEIGHTS}")[:2] == (0, "identical: 1 file\n")
    code, said, _ = mqasearch("reproduce out")
    assert (code, said.count("\n")) == (1, 1)
    assert said.startswith("changed")
    assert "tokenizer.json is missing" in said


def test_a_card_may_be_edited(mqasearch: Command, out: Path) -> None:
    (out / "README.md").write_text("mine")
    (out / ".gitattributes").write_text("of a hub")
    assert mqasearch("reproduce out")[0] == 0


def test_one_changed_byte_is_found_before_anything_is_built(
    mqasearch: Command, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded")

    flip_a_byte(out / WEIGHTS)
    monkeypatch.setattr(reproducing, "load_original", load)
    code, said, _ = mqasearch("reproduce out")
    assert code == 1
    assert said.count("\n") == 1
    assert said.startswith("changed")
    assert f"{WEIGHTS} has other bytes" in said


def test_an_output_folder_repairs_a_changed_one(mqasearch: Command, out: Path) -> None:
    good = (out / WEIGHTS).read_bytes()
    (out / WEIGHTS).write_bytes(good[:-1])
    code, said, _ = mqasearch("reproduce out --output-dir again")
    assert code == 1
    assert f"{WEIGHTS} has {len(good) - 1:,} bytes" in said
    assert "the new folder has the right bytes" in said
    assert Path("again", WEIGHTS).read_bytes() == good
    assert mqasearch("reproduce again")[0] == 0


def test_other_bytes_from_the_same_inputs_are_said_to_be_that(
    mqasearch: Command, out: Path
) -> None:
    pretend_other_weights(out)
    code, said, _ = mqasearch("reproduce out")
    assert code == 1
    assert said.startswith(f"built differently: {WEIGHTS}\nno recorded input differs")


def test_a_differing_input_is_named(mqasearch: Command, out: Path) -> None:
    record = read_record(out)
    pretend_other_weights(out)
    edit_record(
        out,
        versions=record["versions"] | {"torch": "1.0"},
        code=record["code"] | {"merges and calibration": "0" * 64},
        source=record["source"] | {"tokenizer": "1" * 64},
    )
    code, said, _ = mqasearch("reproduce out")
    assert code == 1
    lines = said.splitlines()
    assert lines[0] == f"built differently: {WEIGHTS}"
    named = [line.removeprefix("differing input: ").partition(":")[0] for line in lines[1:]]
    assert named == ["code.merges and calibration", "source.tokenizer", "versions.torch"]
    assert f"versions.torch: 1.0 then, {torch.__version__} now" in said


def test_other_calibration_texts_are_named(
    mqasearch: Command, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = TaskLibrary(lambda name, *_: [small_task(name, seed=7)])
    monkeypatch.setattr(scorers, "TaskLibrary", lambda: library)
    code, said, _ = mqasearch("reproduce out")
    assert code == 1
    assert f"built differently: {WEIGHTS}" in said
    (line,) = (line for line in said.splitlines() if line.startswith("differing input"))
    assert line.startswith("differing input: mask.calibration.digest: ")


def test_every_input_that_is_recorded_is_compared(out: Path) -> None:
    record = read_record(out)
    then = json.loads(json.dumps(record))
    then["mask"]["dtype"] = "bfloat16"
    then["mask"]["kv_heads"] = [1, 1, 1]
    then["format"] = "expanded"
    then["computed"]["calibration"]["moments"]["device"] = "cuda"
    then["computed"]["processor"] = "NEON"
    then["files"] = {}
    then["source"]["id"] = "elsewhere"
    assert [line.partition(":")[0] for line in differing_inputs(then, record)] == [
        "computed.calibration.moments.device",
        "computed.processor",
        "format",
        "mask.dtype",
        "mask.kv_heads",
    ]
    assert differing_inputs(record, record) == []


def test_changed_source_weights_are_found_before_anything_is_built(
    mqasearch: Command, out: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*_: object, **__: object) -> None:
        raise AssertionError("it was built")

    original(folder / "model", seed=1)
    monkeypatch.setattr(reproducing, "calibrate_for_mask", build)
    monkeypatch.setattr(reproducing, "convert_checkpoint", build)
    code, said, err = mqasearch("reproduce out")
    assert (code, said) == (2, "")
    assert "its weights or its config have changed" in err
    assert "--model" in err
    assert len([row for row in err.splitlines() if row.startswith("mqasearch: ")]) == 1


def test_a_source_that_has_moved(mqasearch: Command, out: Path, folder: Path) -> None:
    (folder / "model").rename(folder / "moved")
    code, _, err = mqasearch("reproduce out")
    assert code == 2
    assert "say where: --model" in err
    assert mqasearch("reproduce out --model moved")[0] == 0


def test_a_hub_model_is_found_by_its_commit(
    mqasearch: Command, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A branch moves on; what was converted stays."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
    put_in_hub_cache(folder / "model", folder / "hub", "owner/tiny")
    api.convert((1, 4, 2), folder / "out", model="owner/tiny", dtype="float32")
    source = read_record(folder / "out")["source"]
    assert (source["id"], source["commit"][:6]) == ("owner/tiny", "c0ffee")
    (folder / "hub" / "models--owner--tiny" / "refs" / "main").unlink()
    assert mqasearch("reproduce out")[0] == 0
