"""``mqasearch run MODEL``: the default study of a model, and its file beside the results."""

import json
import re
from pathlib import Path

import pytest
import yaml
from command_line import Command

from mqasearch.samplers import RECOMMENDED
from mqasearch.search.names import known_names
from mqasearch.serving.mask_json import read_mask
from mqasearch.spec import StudySpec, load_spec
from tests.models.checkpoints import save
from tests.tiny import tiny_model

FEW = "--budget 3 --documents 20 --confirmation 40"


def study_in(folder: Path) -> StudySpec:
    return load_spec(folder / "study.yaml", known_names())


def test_a_model_gets_the_default_study_and_its_file_is_the_same_study(
    mqasearch: Command, folder: Path
) -> None:
    code, out, err = mqasearch(f"run fake:9 --output-dir out {FEW}")
    assert code == 0, err
    assert "study file: out/study.yaml" in out
    for selector in RECOMMENDED:
        assert selector in out
    spec = study_in(folder / "out")
    assert (spec.name, spec.model.name) == ("fake-9", "fake:9")
    assert {s.name: s.parameters for s in spec.selectors} == RECOMMENDED
    assert [task.name for task in spec.tasks] == ["hellaswag"]
    mask = read_mask(folder / "out" / "masks.json")
    assert len(mask["mqa_layers"]) == 3  # a third

    text = (folder / "out" / "study.yaml").read_text()
    for line in (f"run fake:9 --output-dir out {FEW}", "run fake:9 --output-dir out"):
        code, _, log = mqasearch(line)
        assert (code, " trial " in log, "confirming" in log) == (0, False, False)
    code, _, log = mqasearch("run out/study.yaml --output-dir again")
    assert (code, " trial " in log) == (0, False)
    same = read_mask(folder / "again" / "masks.json")
    assert same | {"created_at": ""} == mask | {"created_at": ""}
    assert (folder / "out" / "study.yaml").read_text() == text


@pytest.mark.parametrize(
    ("options", "keys"),
    [
        ("--budget 2,4", {"budget": [2, 4]}),
        ("--budget 0.6", {"budget": {"kv_bytes_fraction": 0.6}}),
        ("--task piqa --task copa", {"tasks": ["piqa", "copa"]}),
        ("--documents all", {"documents": {"search": None}}),
        ("--documents 64 --confirmation 90", {"documents": {"search": 64, "confirmation": 90}}),
        ("--dtype float32", {"model": {"name": "fake:6", "dtype": "float32"}}),
        ("--revision r1", {"model": {"name": "fake:6", "revision": "r1"}}),
        ("--trust-remote-code", {"model": {"name": "fake:6", "trust_remote_code": True}}),
        ("--study-name mine", {"name": "mine"}),
    ],
)
def test_what_is_chosen_is_what_the_file_says(
    mqasearch: Command, folder: Path, options: str, keys: dict[str, object]
) -> None:
    code, _, err = mqasearch(f"run fake:6 {options}")
    assert code == 0, err
    default = {"name": "fake-6", "model": "fake:6", "budget": 2, "tasks": ["hellaswag"]}
    (folder / "wanted.yaml").write_text(yaml.safe_dump(default | keys))
    assert study_in(folder) == load_spec(folder / "wanted.yaml", known_names())


def test_a_folder_is_a_model_wherever_one_works(mqasearch: Command, folder: Path) -> None:
    save(tiny_model("llama", n_layers=3), folder / "My Model")
    code, _, err = mqasearch("run 'My Model/' --output-dir out --documents 4 --confirmation 4")
    assert code == 0, err
    spec = study_in(folder / "out")
    assert (spec.name, spec.model.name) == ("My-Model", str(folder / "My Model"))
    assert len(read_mask(folder / "out" / "masks.json")["mqa_layers"]) == 1
    code, _, log = mqasearch("run 'My Model' --output-dir out")
    assert (code, " trial " in log) == (0, False)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("run studies/demo", r"did you mean studies/demo\.yaml"),
        ("run studies/dmo", r"did you mean studies/demo\.yaml"),
        ("run smollm2-135", "did you mean smollm2-135m"),
        ("run ./my-modl", r"did you mean \./my-model"),
        ("run a/b/c", r"give a study file \(STUDY.yaml\), or a model: smollm2-135m, a folder"),
        ("run nothing.gguf", "there is no GGUF file nothing.gguf"),
        ("run fake:x", "fake:LAYERS"),
        ("run fake:6 --budget five", "--budget five: give a number of layers"),
        ("run fake:6 --budget 7", "7 layers cannot be met by a model of 6 layers"),
        ("run fake:6 --documents few", "--documents few: give a number of documents, or all"),
        ("run fake:6 --documents 1", "documents.search: .*greater than or equal to 2, not 1"),
        ("run fake:6 --tolerance acc_norm", "--tolerance acc_norm: write METRIC:POINTS"),
        ("run fake:6 --task helaswag", "did you mean 'hellaswag'"),
        ("run fake:6 --dtype half", "model.dtype"),
        ("run studies/demo.yaml --budget 3", r"--budget .* into studies/demo\.yaml, as in `budget"),
        ("run studies/demo.yaml --trust-remote-code", "--trust-remote-code goes with a model"),
        ("run studies/demo.yaml --task piqa", r"`tasks: \[hellaswag\]`"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    mqasearch: Command, folder: Path, line: str, message: str
) -> None:
    (folder / "studies").mkdir()
    (folder / "studies" / "demo.yaml").write_text("name: x")
    (folder / "my-model").mkdir()
    (folder / "my-model" / "config.json").write_text("{}")
    code, out, err = mqasearch(line)
    assert (code, out) == (2, "")
    assert re.search(message, err), err
    assert err.count("\n") == 1
    assert not (folder / "study.yaml").exists()


def test_another_study_in_the_same_folder_is_refused_and_can_be_made_elsewhere(
    mqasearch: Command, folder: Path
) -> None:
    assert mqasearch(f"run fake:6 --budget 2 {FEW}")[0] == 0
    text = (folder / "study.yaml").read_text()
    for line, differs in (
        ("run fake:6 --budget 3", r"budget: .*2.* → .*3"),
        ("run fake:7", "model.name: fake:6 → fake:7"),
        ("run fake:6 --task piqa", "hellaswag.* → .*piqa"),
    ):
        code, _, err = mqasearch(line)
        assert code == 2
        assert re.search(differs, err), err
        assert "--output-dir" in err
    assert (folder / "study.yaml").read_text() == text
    line = f"run fake:6 --budget 3 {FEW} --output-dir three"
    code, _, err = mqasearch(line)
    assert code == 2
    assert "another name" in err
    assert not (folder / "three" / "study.yaml").exists()
    assert mqasearch(f"{line} --study-name three")[0] == 0
    _, out, _ = mqasearch("status -f json")
    names = {row["study"].partition(".")[0] for row in json.loads(out)["studies"]}
    assert names == {"fake-6", "three"}
