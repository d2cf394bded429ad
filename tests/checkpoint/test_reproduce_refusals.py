"""Folders that cannot be built again are refused in one line."""

import json
import shutil
from pathlib import Path

import pytest
from command_line import Command
from jsonschema import Draft202012Validator

from mqasearch.checkpoint import reproducing
from mqasearch.checkpoint.reproduce_json import read_record
from mqasearch.checkpoint.reproducing import reproduce
from mqasearch.errors import UserError
from mqasearch.export.mask_json import schema
from tests.checkpoint.changed_folder import WEIGHTS, edit_record


@pytest.mark.parametrize("free", [0, 64_010_000])
def test_too_little_room_is_found_before_anything_is_calibrated(
    free: int, mqasearch: Command, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def calibrated(*_: object, **__: object) -> None:
        raise AssertionError("calibrated before the room was checked")

    usage = type("Usage", (), {"free": free})
    monkeypatch.setattr("mqasearch.files.folders.shutil.disk_usage", lambda path: usage)
    monkeypatch.setattr(reproducing, "calibrate_for_mask", calibrated)
    code, _, err = mqasearch("reproduce out")
    assert code == 2
    assert "GB are needed" in err
    assert not list(out.parent.glob(".out.*"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("reproduce nowhere", "there is no folder nowhere"),
        ("reproduce model", "is no folder that `mqasearch convert` wrote"),
        ("reproduce older", "an older mqasearch wrote it"),
        ("reproduce broken", "line 1, column 2: not JSON"),
        ("reproduce wrong", "schema_version 7"),
        ("reproduce lacking", "'format' is a required property"),
        ("reproduce escaping", "'../model/config.json' does not match"),
        ("reproduce inconsistent", "mask and mqa_layers name different layers"),
        ("reproduce unknown", "unknown format 'hff': did you mean 'hf'"),
        ("reproduce out/README.md", "whose reproduce.json names"),
        ("reproduce out --output-dir model", "model exists already"),
        ("reproduce out --device cuda:9", "'cuda:9' is absent"),
        ("reproduce", "FOLDER_OR_FILE"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    line: str, message: str, mqasearch: Command, out: Path, folder: Path
) -> None:
    faults = ("older", "broken", "wrong", "lacking", "escaping", "inconsistent", "unknown")
    for name in faults:
        shutil.copytree(out, folder / name)
    record = read_record(out)
    (folder / "older" / "reproduce.json").unlink()
    (folder / "broken" / "reproduce.json").write_text("{")
    edit_record(folder / "wrong", schema_version=7)
    lacking = {key: value for key, value in record.items() if key != "format"}
    (folder / "lacking" / "reproduce.json").write_text(json.dumps(lacking))
    anywhere = {"../model/config.json": record["files"]["config.json"]}
    edit_record(folder / "escaping", files=anywhere)
    edit_record(folder / "inconsistent", mask=record["mask"] | {"mqa_layers": [1]})
    edit_record(folder / "unknown", format="hff")

    code, said, err = mqasearch(line)

    assert (code, said) == (2, "")
    assert message in err
    assert "Traceback" not in err
    assert len([row for row in err.splitlines() if row.startswith("mqasearch: ")]) == 1


def test_a_conversion_whose_texts_nobody_knows_cannot_be_built_again(
    mqasearch: Command, out: Path
) -> None:
    mask = read_record(out)["mask"]
    edit_record(out, mask=mask | {"calibration": {"digest": mask["calibration"]["digest"]}})
    code, _, err = mqasearch("reproduce out")
    assert code == 2
    assert "calibration has no 'tasks'" in err


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(schema("reproduce"))


@pytest.mark.parametrize("name", ["/etc/passwd", "a/../../b", "..", "a\\b", "C:x"])
def test_no_name_leads_out_of_the_folder(name: str, out: Path) -> None:
    record = read_record(out)
    edit_record(out, files={name: record["files"][WEIGHTS]})
    with pytest.raises(UserError, match="does not match"):
        reproduce(out)
