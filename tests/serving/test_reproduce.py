"""Converted folders built again: identical bit for bit, or what differs is found and named."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Command
from huggingface_hub import constants
from jsonschema import Draft202012Validator

from mqasearch import api
from mqasearch.conversion import calibration, threads
from mqasearch.conversion.aligned import Aligned
from mqasearch.errors import UserError
from mqasearch.evaluation.prepared import TaskLibrary
from mqasearch.search import scoring
from mqasearch.serving import reproduce as reproducing
from mqasearch.serving.mask_json import schema
from mqasearch.serving.record import differing_inputs, read_record
from mqasearch.serving.reproduce import reproduce
from tests.evaluation.small_tasks import load_small, small_task
from tests.models.checkpoints import put_in_hub_cache
from tests.models.checkpoints import tokenizer as byte_level
from tests.serving.converting import mask_for, original

MEAN = {"name": "mean"}
ALIGNED = {"name": "aligned"}
WEIGHTS = "model.safetensors"
KINDS: list[tuple[dict[str, Any], str | None]] = [
    (MEAN, None),
    ({"name": "first"}, None),
    ({"name": "best"}, None),
    (MEAN | {"refit": True}, None),
    (MEAN | {"refit": True}, "sequential"),
    (ALIGNED, None),
    (ALIGNED, "sequential"),
    (ALIGNED, "none"),
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a model, and benchmarks and caches of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MQASEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(scoring, "TaskLibrary", lambda: TaskLibrary(load_small))
    original(tmp_path / "model")
    return tmp_path


@pytest.fixture
def mqasearch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path
) -> Command:
    """``mqasearch(LINE)`` in the folder."""
    return Command(monkeypatch, capsys)


@pytest.fixture
def out(folder: Path) -> Path:
    """A converted folder whose merge is calibrated."""
    api.convert(mask_for(folder / "model", folder / "mask.json", ALIGNED), folder / "out")
    return folder / "out"


def edit_record(folder: Path, **changes: Any) -> None:
    path = folder / "reproduce.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def pretend_other_weights(folder: Path) -> None:
    """As if other weights had been written then: a fault that only building again finds."""
    record = read_record(folder)
    flip_a_byte(folder / WEIGHTS)
    digest = reproducing.described(folder / WEIGHTS)
    edit_record(folder, files=record["files"] | {WEIGHTS: digest})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("merge", "refit"), KINDS, ids=str)
@pytest.mark.parametrize("n_threads", [1, 2])
def test_every_merge_refit_and_dtype_is_built_again_bit_for_bit(
    n_threads: int, merge: dict[str, Any], refit: str | None, dtype: str, folder: Path
) -> None:
    """On as many threads as the first time, however many there are otherwise."""
    mask = mask_for(folder / "model", folder / "mask.json", merge)
    with threads(n_threads):
        api.convert(mask, folder / "out", refit=refit, dtype=dtype)
    with threads(3 - n_threads):
        found = reproduce(folder / "out")
        assert torch.get_num_threads() == 3 - n_threads
    assert found.identical, found
    assert {WEIGHTS, "mask.json", "config.json", "tokenizer.json"} <= set(found.files)
    assert not {"reproduce.json", "README.md"} & set(found.files)


@pytest.mark.parametrize("model_type", ["gpt2", "phi3", "qwen2"])
@pytest.mark.parametrize("name", ["hf", "expanded"])
def test_formats_families_and_shards(name: str, model_type: str, folder: Path) -> None:
    original(folder / model_type, model_type)
    options = {"format": name, "max_shard_bytes": 20_000, "dtype": "bfloat16"}
    api.convert((1, 4, 2), folder / "out", model=folder / model_type, **options)
    found = reproduce(folder / "out")
    assert found.identical, found
    assert len([file for file in found.files if file.endswith(".safetensors")]) > 1


@pytest.mark.parametrize("outtype", ["f16", "q8_0"])
def test_a_file_for_llama_cpp(outtype: str, folder: Path) -> None:
    original(folder / "qwen2", "qwen2")
    byte_level().save_pretrained(folder / "qwen2")  # llama.cpp knows no tokenizer of whole words
    options = {"format": "gguf", "outtype": outtype}
    api.convert((1, 4, 2), folder / "out", model=folder / "qwen2", **options)
    found = reproduce(folder / "out")
    assert found.identical, found
    assert set(found.files) == {"mask.json", "model.gguf"}


@pytest.fixture
def threads_of(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[int]]:
    """Function → on how many threads it has run.

    Looked at here, since it depends on sizes and processor whether sums then round differently.
    """
    seen: dict[str, set[int]] = {}

    def watch(module: Any, name: str) -> None:
        run = getattr(module, name)

        def watched(*arguments: Any, **options: Any) -> Any:
            seen.setdefault(name, set()).add(torch.get_num_threads())
            return run(*arguments, **options)

        monkeypatch.setattr(module, name, watched)

    watch(calibration, "moments")
    watch(calibration, "refit_layers")
    watch(scoring, "refit_sequential")
    watch(Aligned, "merge")
    return seen


@pytest.mark.parametrize("refit", ["parallel", "sequential", "none"])
def test_it_is_built_on_as_many_threads_as_the_first_time(
    refit: str, folder: Path, threads_of: dict[str, set[int]]
) -> None:
    mask = mask_for(folder / "model", folder / "mask.json", ALIGNED)
    with threads(2):
        api.convert(mask, folder / "out", refit=refit)
    first = dict(threads_of)
    assert set().union(*first.values()) == {2}
    threads_of.clear()
    with threads(1):
        assert reproduce(folder / "out").identical
    assert threads_of == first


def test_a_calibration_of_another_process_is_computed_again_as_it_was_there(
    folder: Path, threads_of: dict[str, set[int]]
) -> None:
    """The cache hands numbers on to processes that might have rounded otherwise."""
    mask = mask_for(folder / "model", folder / "mask.json", ALIGNED)
    with threads(2):
        api.convert(mask, folder / "first", refit="none")  # its moments only
    with threads(1):
        api.convert(mask, folder / "out")
    computed = read_record(folder / "out")["computed"]
    on_one, on_two = ({"device": "cpu", "threads": number} for number in (1, 2))
    assert computed["calibration"] == {
        "moments": on_two,
        "fitted to 1": on_one,
        "fitted to 2": on_one,
    }
    shutil.rmtree(folder / "cache" / "calibration")
    threads_of.clear()
    with threads(2):
        assert reproduce(folder / "out").identical
    assert (threads_of["moments"], threads_of["refit_layers"]) == ({2}, {1})
    assert not (folder / "cache" / "calibration").exists()


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
    assert (code, said) == (1, "changed since it was written: tokenizer.json is missing\n")


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
    assert said == f"changed since it was written: {WEIGHTS} has other bytes than were written\n"


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
    monkeypatch.setattr(scoring, "TaskLibrary", lambda: library)
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
    monkeypatch.setattr(reproducing, "_build", build)
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


@pytest.mark.parametrize("free", [0, 64_010_000])
def test_too_little_room_is_found_before_anything_is_calibrated(
    free: int, mqasearch: Command, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def calibrated(*_: object, **__: object) -> None:
        raise AssertionError("calibrated before the room was checked")

    usage = type("Usage", (), {"free": free})
    monkeypatch.setattr("mqasearch.serving.folder.shutil.disk_usage", lambda path: usage)
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
