"""``mqasearch run MODEL``: the default study of a model, and its file beside the results."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import Command
from huggingface_hub import constants

from mqasearch.creation import load_study
from mqasearch.errors import ScoreError
from mqasearch.export import read_mask
from mqasearch.mask import KVHeads
from mqasearch.score import Score
from mqasearch.scoring import FakeScorer
from mqasearch.selectors import RECOMMENDED
from mqasearch.spec import StudySpec
from tests.creation.test_latency_file import one_setting
from tests.models.checkpoints import put_in_hub_cache, save
from tests.tiny import tiny_model

FEW = "--budget 3 --documents 20 --confirmation 40"


@pytest.fixture
def n_scored(caplog: pytest.LogCaptureFixture) -> Callable[[], int]:
    """Trials and confirmations that were logged since the last call."""

    def count() -> int:
        lines = [*caplog.messages]
        caplog.clear()
        return sum(" trial " in line or "confirming" in line for line in lines)

    return count


def study_in(folder: Path) -> StudySpec:
    return load_study(folder / "study.yaml")


@pytest.mark.long
def test_a_model_gets_the_default_study_and_its_file_is_the_same_study(
    mqasearch: Command, folder: Path, n_scored: Callable[[], int]
) -> None:
    code, out, err = mqasearch(f"run fake:9 --output-dir out {FEW}")
    assert code == 0, err
    assert n_scored() > 9
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
        assert (mqasearch(line)[0], n_scored()) == (0, 0)
    assert mqasearch("run out/study.yaml --output-dir again")[0] == n_scored() == 0
    same = read_mask(folder / "again" / "masks.json")
    assert same | {"created_at": ""} == mask | {"created_at": ""}
    assert (folder / "out" / "study.yaml").read_text() == text


@pytest.mark.long
@pytest.mark.parametrize(
    ("options", "keys"),
    [
        ("--budget 2,4", {"budget": [2, 4]}),
        ("", {"budget": "auto"}),
        ("--budget auto", {"budget": "auto"}),
        (
            "--tolerance acc_norm:1 --tolerance hellaswag.acc:2 --budget 1",
            {
                "budget": 1,
                "tolerance": [
                    {"metric": "acc_norm", "points": 1.0},
                    {"task": "hellaswag", "metric": "acc", "points": 2.0},
                ],
            },
        ),
        ("--budget 0.6", {"budget": {"kv_bytes_fraction": 0.6}}),
        (
            "--budget 16ms,2 --latency latency.json",
            {"budget": [{"decode_ms": 16.0, "latency": "latency.json"}, 2]},
        ),
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
    (folder / "latency.json").write_text(json.dumps(one_setting()))
    code, _, err = mqasearch(f"run fake:6 {options}")
    assert code == 0, err
    default = {"name": "fake-6", "model": "fake:6", "budget": "auto", "tasks": ["hellaswag"]}
    (folder / "wanted.yaml").write_text(yaml.safe_dump(default | keys))
    assert study_in(folder) == load_study(folder / "wanted.yaml")


@pytest.mark.long
def test_a_folder_is_a_model_wherever_one_works(
    mqasearch: Command, folder: Path, n_scored: Callable[[], int]
) -> None:
    save(tiny_model("llama", n_layers=3), folder / "My Model")
    code, _, err = mqasearch(
        "run 'My Model/' --output-dir out --budget 1 --documents 4 --confirmation 4"
    )
    assert code == 0, err
    spec = study_in(folder / "out")
    assert (spec.name, spec.model.name) == ("My-Model", str(folder / "My Model"))
    assert len(read_mask(folder / "out" / "masks.json")["mqa_layers"]) == 1
    assert n_scored() > 3
    assert mqasearch("run 'My Model' --output-dir out")[0] == n_scored() == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("run studies/demo", r"did you mean studies/demo\.yaml"),
        ("run studies/dmo", r"did you mean studies/demo\.yaml"),
        ("run fake:6 --budget 12ms", r"budget.*: a decoding time needs measured ones"),
        ("run fake:6 --budget 2 --latency l.json", "--latency: give --budget in milliseconds too"),
        ("run fake:6 --budget 12ms --latency l.json", "budget.latency: l.json: No such file"),
        ("run fake:6 --budget 1e999ms", "budget.*decode_ms"),
        ("run fake:6 --budget xms --latency l.json", "--budget xms: .* as in 12ms"),
        ("run studies/demo.yaml --latency l.json", "--latency goes with a model, not with a st"),
        ("run smollm2-135", "did you mean smollm2-135m"),
        ("run smolm2-135m", "did you mean smollm2-135m"),
        ("run ./my-modl", r"did you mean \./my-model"),
        ("run a/b/c", r"study file \(STUDY\.yaml\).* model: smollm2-135m, .*folder"),
        ("run nothing.gguf", r"no GGUF file nothing\.gguf"),
        ("run fake:x", "fake:LAYERS"),
        ("run fake:6 --budget five", "--budget five: give auto, a number of layers"),
        ("run fake:6 --budget 7", "7 layers .* model of 6 layers"),
        ("run fake:6 --documents few", "--documents few: give a number of documents, or all"),
        ("run fake:6 --documents 1", r"documents\.search: .*\b2, not 1"),
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


@pytest.fixture
def hub_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of a hub that cannot be reached."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
    return folder / "hub"


@pytest.mark.parametrize("name", ["gpt2", "owner/name", "bert-base.v1"])
def test_a_name_that_is_nothing_here_is_asked_of_the_hub(
    mqasearch: Command, folder: Path, hub_cache: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    code, out, err = mqasearch(f"run {name}")
    assert (code, out) == (2, "")
    assert f"asking the hub for {name}" in caplog.messages
    assert f"cannot load {name}: the hub cannot be reached" in err.splitlines()[-1]
    assert not (folder / "study.yaml").exists()


@pytest.mark.long
@pytest.mark.parametrize("name", ["tiny", "owner/tiny"])
def test_a_model_of_the_hub_runs_whatever_its_name(
    mqasearch: Command, folder: Path, hub_cache: Path, name: str
) -> None:
    put_in_hub_cache(save(tiny_model("llama", n_layers=2), folder / "saved"), hub_cache, name)
    code, _, err = mqasearch(f"run {name} --budget 1 --documents 4 --confirmation 4")
    assert code == 0, err
    spec = study_in(folder)
    assert (spec.name, spec.model.name) == ("tiny", name)


def test_a_file_or_folder_wins_over_a_name_of_the_hub(
    mqasearch: Command, folder: Path, hub_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "gpt2").mkdir()
    assert "gpt2 holds no model" in mqasearch("run gpt2")[2]
    (folder / "bert").write_text("name: x")
    assert "bert: " in mqasearch("run bert")[2]  # a study file, which lacks a lot
    assert not any("hub" in message for message in caplog.messages)


@pytest.mark.long
def test_another_study_in_the_same_folder_is_refused_and_can_be_made_elsewhere(
    mqasearch: Command, folder: Path
) -> None:
    assert mqasearch(f"run fake:6 {FEW} --budget 2")[0] == 0
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
    line = f"run fake:6 {FEW} --output-dir three"
    code, _, err = mqasearch(line)
    assert code == 2
    assert "another name" in err
    assert not (folder / "three" / "study.yaml").exists()
    assert mqasearch(f"{line} --study-name three")[0] == 0
    _, out, _ = mqasearch("status -f json")
    names = {row["study"].partition(".")[0] for row in json.loads(out)["studies"]}
    assert names == {"fake-6", "three"}


@pytest.mark.long
def test_more_documents_go_on_from_those_that_are_scored(
    mqasearch: Command, folder: Path, n_scored: Callable[[], int]
) -> None:
    assert mqasearch(f"run fake:6 {FEW}")[0] == 0
    n_scored()
    for line in ("run fake:6 --documents 60 --confirmation 90", "run fake:6", "run study.yaml"):
        code, _, err = mqasearch(line)
        assert code == 0, err
        assert '"n_docs": 90' in (folder / "masks.json").read_text()
        assert (n_scored() > 9) == ("--documents" in line)
        documents = study_in(folder).documents
        assert (documents.search, documents.confirmation) == (60, 90)
        mask = read_mask(folder / "masks.json")
        assert mask["study"]["name"].startswith("fake-6@60.")
    assert mqasearch("run fake:6 --confirmation all")[0] == 0
    assert n_scored() == len(RECOMMENDED)
    assert study_in(folder).documents.confirmation is None
    text = (folder / "study.yaml").read_text()
    for line in ("run fake:6 --documents 20", "run fake:6 --confirmation 90"):
        code, _, err = mqasearch(line)
        assert (code, err.count("\n")) == (2, 1)
        assert "would be fewer" in err
    assert (folder / "study.yaml").read_text() == text
    _, out, _ = mqasearch("compare --study-name fake-6@20 -f json")
    assert {row["comparison"] for row in json.loads(out)} == {"fake-6"}
    for line in ("export --study-name fake-6@20 -o m.json", "status --study-name fake-6@60"):
        assert mqasearch(line)[0] == 0


@pytest.mark.long
@pytest.mark.parametrize(
    ("at_fault", "whose"), [("0", "the original model"), ("1", "its best mask")]
)
def test_without_a_held_out_score_there_are_tables_and_masks_and_one_line_says_what_is_missing(
    mqasearch: Command,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    n_scored: Callable[[], int],
    at_fault: str,
    whose: str,
) -> None:
    score = FakeScorer.score

    def diverging(self: FakeScorer, kv_heads: KVHeads, *args: Any) -> Score:
        *_, documents = args
        converted = "0" if kv_heads == self.shape.original else "1"
        if documents.split == "confirmation" and converted == at_fault:
            raise ScoreError("hellaswag: a log-likelihood is nan")
        return score(self, kv_heads, *args)

    with monkeypatch.context() as patched:
        patched.setattr(FakeScorer, "score", diverging)
        assert mqasearch(f"run fake:6 {FEW}")[0] == 1
        n_scored()
        code, out, err = mqasearch(f"run fake:6 {FEW}")
    assert (code, n_scored()) == (1, 0)  # what has no score is not scored again
    for words in (*RECOMMENDED, "masks: masks.json", "study file: study.yaml"):
        assert words in out
    assert "split" in read_mask(folder / "masks.json")["scores"]["hellaswag"]["acc_norm"]
    line = err.splitlines()[-1]
    names = ", ".join(f"'fake-6.{selector}'" for selector in RECOMMENDED)
    assert f"{names}: no held-out result, because {whose} cannot be scored" in line
    assert "a log-likelihood is nan" in line
    assert line in f"mqasearch: {mqasearch('status')[1].splitlines()[-1]}"

    code, _, err = mqasearch("run fake:6 --confirmation 50")  # on others there is one
    assert code == 0, err
    assert "no held-out result" not in mqasearch("status")[1]


@pytest.mark.long
@pytest.mark.parametrize("target", ["fake:6", "study.yaml"])
def test_more_trials_are_added_once_a_call(
    mqasearch: Command, folder: Path, caplog: pytest.LogCaptureFixture, target: str
) -> None:
    assert mqasearch(f"run fake:6 {FEW}")[0] == 0

    def n_masks() -> int:
        _, out, _ = mqasearch("status -f json")
        (gp,) = (row for row in json.loads(out)["studies"] if row["study"].endswith(".gp"))
        return int(gp["complete"])

    assert n_masks() == 10
    assert mqasearch(f"run {target} --n-trials +3")[0] == 0
    assert "fake-6.gp: 10 → 13 trials" in caplog.messages
    assert n_masks() == 13
    for _ in range(2):
        assert mqasearch(f"run {target} --n-trials 15")[0] == 0
        assert n_masks() == 15
    assert mqasearch(f"run {target}")[0] == 0
    assert n_masks() == 15


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--n-trials more", r"--n-trials more: give \+20 for 20 more, or 60 for 60 in all"),
        ("--n-trials +0", r"--n-trials \+0: give \+20"),
        ("--n-trials=-5", "--n-trials -5: give"),
        ("--n-trials +5", "no more trials for greedy: .* add one of gp, evolution, tpe, random"),
    ],
)
def test_trials_that_cannot_be_added_are_refused_before_anything_is_made(
    mqasearch: Command, folder: Path, line: str, message: str
) -> None:
    study = {"name": "s", "model": "fake:6", "budget": 2, "tasks": ["piqa"]}
    (folder / "s.yaml").write_text(yaml.safe_dump(study | {"selectors": ["greedy"]}))
    code, out, err = mqasearch(f"run s.yaml {line}")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert re.search(message, err), err
    assert not (folder / "mqasearch.db").exists()
