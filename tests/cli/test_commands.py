"""The command line on the fake model: exit codes, one line for bad input, the README's commands."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
import yaml
from command_line import Command
from jsonschema import Draft202012Validator

from mqasearch.errors import ScoreError
from mqasearch.export import read_mask
from mqasearch.models import resolve
from mqasearch.scoring import FakeScorer
from tests.creation.test_latency_file import measured

ROOT = Path(__file__).parents[2]
STUDY = {
    "name": "demo",
    "model": "fake:8",
    "budget": 3,
    "tasks": ["hellaswag"],
    "documents": {"search": 20, "confirmation": 40},
    "selectors": ["sensitivity", "greedy", {"name": "tpe", "n_trials": 6}],
}


@pytest.fixture
def folder(folder: Path) -> Path:
    """A working folder with a study file."""
    (folder / "studies").mkdir()
    write_study(folder / "studies" / "demo.yaml")
    return folder


def write_study(path: Path, **changes: object) -> None:
    path.write_text(yaml.safe_dump(STUDY | changes))


@pytest.mark.processes
def test_help_imports_nothing_heavy() -> None:
    heavy = {"torch", "optuna", "transformers", "lm_eval", "sqlalchemy", "plotly", "numpy"}
    code = (
        "import sys, mqasearch.cli.app; sys.stdout.write(' '.join(m for m in sys.modules"
        f" if m in {heavy!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""


@pytest.mark.long
def test_a_run_ends_with_the_table_the_masks_and_what_to_do_next(
    mqasearch: Command, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    code, out, _ = mqasearch("run studies/demo.yaml --output-dir results")
    assert code == 0
    for word in ("sensitivity", "greedy", "tpe", "mqasearch dashboard", "mqasearch worker"):
        assert word in out
    assert len(read_mask(folder / "results" / "masks.json")["mqa_layers"]) == 3
    assert "trial" in caplog.text
    caplog.clear()
    assert mqasearch("run studies/demo.yaml --output-dir results")[0] == 0
    assert "trial" not in caplog.text


def test_listings_are_data_on_stdout(mqasearch: Command) -> None:
    for listing in ("tasks", "families", "selectors", "merges", "formats"):
        code, out, err = mqasearch(f"{listing} -f json")
        assert (code, err) == (0, "")
        assert len(json.loads(out)) >= 3


@pytest.mark.long
def test_a_study_file_without_selectors_takes_those_that_the_list_marks(
    mqasearch: Command, folder: Path
) -> None:
    _, out, _ = mqasearch("selectors -f json")
    marked = [row["selector"] for row in json.loads(out) if row["recommended"]]
    study = {key: value for key, value in STUDY.items() if key != "selectors"}
    (folder / "studies" / "demo.yaml").write_text(yaml.safe_dump(study))
    assert mqasearch("run studies/demo.yaml")[0] == 0
    _, out, _ = mqasearch("compare --study-name demo -f json")
    assert [row["selector"] for row in json.loads(out)] == marked != []


@pytest.mark.long
def test_comparison_and_status_as_json(mqasearch: Command) -> None:
    mqasearch("run studies/demo.yaml")
    _, out, _ = mqasearch("compare --study-name demo -f json")
    rows = json.loads(out)
    assert [row["selector"] for row in rows] == ["sensitivity", "greedy", "tpe"]
    assert all(row["confirmed"]["hellaswag"]["acc_norm"]["n_docs"] == 40 for row in rows)
    _, out, _ = mqasearch("status -f json")
    tpe = json.loads(out)["studies"][2]
    assert json.loads(out)["workers"] == []
    assert (tpe["complete"], tpe["probes"]) == (5, 1)  # the original is the probe


@pytest.mark.long
def test_a_study_whose_original_has_no_score_is_one_line_and_exit_code_1(
    mqasearch: Command, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def score(self: FakeScorer, *_: object) -> None:
        self.n_scored += 1
        raise ScoreError("hellaswag: a log-likelihood is nan")

    monkeypatch.setattr(FakeScorer, "score", score)
    lines = set()
    for line in ("run studies/demo.yaml", "worker --study-name demo", "run studies/demo.yaml"):
        code, out, err = mqasearch(line)
        assert code == 1, err
        assert "Traceback" not in err
        (said,) = (row for row in err.splitlines() if row.startswith("mqasearch: "))
        lines.add(said)
        if line.startswith("run"):
            assert "sensitivity" in out
    (said,) = lines
    assert "the original model cannot be scored by kl of hellaswag" in said
    code, out, _ = mqasearch("status")
    assert code == 0
    assert said.removeprefix("mqasearch: ") in out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("run studies/demo.yml", r"did you mean studies/demo\.yaml"),
        ("run studies/typo.yaml", "unknown key 'selectrs': did you mean 'selectors'"),
        ("run studies/names.yaml", "'greedy'"),
        ("run studies/names.yaml", "'hellaswag'"),
        ("run studies/names.yaml", "'mean'"),
        ("run studies/names.yaml", "fake:LAYERS"),
        ("run studies/wide.yaml", "9 layers cannot be met by a model of 8 layers"),
        ("run studies/zero.yaml", "greater than or equal to 1"),
        ("run studies/broken.yaml", "not YAML"),
        ("compare --study-name x", "mqasearch create"),
        ("worker --study-name x --storage nonsense", "nonsense"),
        ("worker --study-name x --storage sqlite:////nowhere/at/all.db", "no folder"),
        ("export --study-name x", "--output"),
        ("exprot", "export"),
        ("run", "STUDY.yaml"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    mqasearch: Command, folder: Path, line: str, message: str
) -> None:
    studies = folder / "studies"
    write_study(studies / "typo.yaml", selectrs=["greedy"])
    write_study(
        studies / "names.yaml",
        selectors=["gready"],
        tasks=["helaswag"],
        merge="meen",
        model="fake:x",
    )
    write_study(studies / "wide.yaml", budget=9)
    write_study(studies / "zero.yaml", budget=0)
    (studies / "broken.yaml").write_text("a: [")
    code, out, err = mqasearch(line)
    assert code == 2
    assert out == ""
    assert re.search(message, err), err
    assert "Traceback" not in err
    assert "canary" not in err


def test_another_spec_under_the_same_name_shows_the_difference(
    mqasearch: Command, folder: Path
) -> None:
    assert mqasearch("create studies/demo.yaml")[0] == 0
    write_study(folder / "studies" / "demo.yaml", seed=7)
    code, _, err = mqasearch("create studies/demo.yaml")
    assert code == 2
    assert "seed: 0 → 7" in err


@pytest.mark.processes
def test_a_killed_run_goes_on(mqasearch: Command, folder: Path) -> None:
    write_study(folder / "studies" / "demo.yaml", model="fake:8:0.2")
    command = [sys.executable, "-m", "mqasearch", "run", "studies/demo.yaml"]
    for stop, expected in ((signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)):
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            wait_for_trials(process, 2)
            process.send_signal(stop)
            _, err = process.communicate(timeout=60)
        assert process.returncode == expected, err
        assert "Traceback" not in err
    assert mqasearch("run studies/demo.yaml")[0] == 0
    _, out, _ = mqasearch("status -f json")
    for row in json.loads(out)["studies"]:
        assert row["running"] == row["waiting"] == 0
        assert row["failed"] <= 3


def wait_for_trials(process: subprocess.Popen[str], n: int) -> None:
    assert process.stderr is not None
    deadline = time.monotonic() + 240
    while n and time.monotonic() < deadline:
        n -= " trial " in process.stderr.readline()
    assert not n


def readme_commands() -> list[str]:
    """Every command that the README shows, in order."""
    blocks = re.findall(r"```console\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line]


def write_real_mask(path: Path) -> None:
    """A mask of the embedded model: the fake one has no weights to convert."""
    layers = [25, 27, 29]
    document = {
        "schema_version": 1,
        "model": {
            "id": "smollm2-135m",
            "fingerprint": None,
            "n_layers": 30,
            "n_heads": 9,
            "n_kv_heads": 3,
        },
        "merge": {"name": "mean"},
        "scores": {"hellaswag": {"kl": {"value": 0.1, "split": "search"}}},
        "mask": [int(layer in layers) for layer in range(30)],
        "mqa_layers": layers,
        "kv_heads": [1 if layer in layers else 3 for layer in range(30)],
        "kv_bytes_per_token": {"original": 23040, "converted": 21504},
    }
    path.write_text(json.dumps(document))


def test_the_readme_shows_every_command() -> None:
    words = {command.split()[1] for command in readme_commands() if command.startswith("mqasearch")}
    text = (ROOT / "README.md").read_text()
    for name in ("run", "create", "worker", "status", "compare", "export", "convert", "latency"):
        assert name in words
    for name in ("tasks", "families", "selectors", "merges", "formats", "schema"):
        assert f"mqasearch {name}" in text


@pytest.mark.model
def test_the_readmes_commands_run(mqasearch: Command, folder: Path) -> None:
    for command in readme_commands():
        if command.startswith("make"):
            assert command.removeprefix("make ") in (ROOT / "Makefile").read_text()
            continue
        program, *rest = command.split(maxsplit=1)
        assert program == "mqasearch"
        line = re.sub(r"postgresql://\S+", "sqlite:///shared.db", rest[0])
        line = line.replace("cuda:0", "cpu")
        if line.startswith("run"):  # the real model is run by `make demo`
            line = line.replace("smollm2-135m", "fake:12")
        if line.startswith("dashboard"):
            continue  # served for real in tests/dashboard
        if line.startswith("convert"):
            write_real_mask(folder / "masks.json")
            line = line.replace("--heal auto", "--heal 2 --heal-tokens 2048 --confirmation 4")
        code, _, err = mqasearch(line)
        assert code == 0, f"{command}: {err}"


def readmes_python() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.mark.model
def test_the_readmes_python_runs(folder: Path) -> None:
    write_real_mask(folder / "masks.json")
    (folder / "original").symlink_to(resolve("smollm2-135m").location)
    (code,) = (each for each in readmes_python() if "import mqasearch\n" in each)
    names: dict[str, Any] = {"inputs": torch.tensor([[1, 2, 3]])}
    exec(code, names)
    assert names["tokens"].shape == (1, 11)
    heads = [layer.self_attn.k_proj.out_features // 64 for layer in names["model"].model.layers]
    assert heads == [1 if layer in (25, 27, 29) else 3 for layer in range(30)]


def test_the_readmes_sampler_ends_a_study_with_its_plan() -> None:
    (code,) = (each for each in readmes_python() if "SelectorSampler" in each)

    def objective(trial: optuna.Trial) -> float:
        names = [f"layer_{layer:02d}" for layer in range(30)]
        flags = [trial.suggest_categorical(name, (False, True)) for name in names]
        return float(sum(layer * flag for layer, flag in enumerate(flags)))

    names: dict[str, Any] = {"objective": objective}
    exec(code, names)
    masks = [[*trial.params.values()] for trial in names["study"].trials]
    assert [True] * 5 + [False] * 25 in masks  # the least harmful five
    assert max(map(sum, masks)) == 5


def test_the_readmes_study_file_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first example is a whole file, and every other one may stand in it."""
    from mqasearch.creation import checked_study

    monkeypatch.chdir(tmp_path)
    (tmp_path / "latency.json").write_text(json.dumps(measured()))
    text = (ROOT / "README.md").read_text()
    whole, *parts = map(yaml.safe_load, re.findall(r"```yaml\n(.*?)```", text, re.DOTALL))
    assert checked_study(whole, "README.md").name == "my-study"
    for part in parts:
        assert checked_study(whole | part, "README.md") != checked_study(whole, "README.md")
    assert parts


@pytest.mark.parametrize("path", sorted((ROOT / "studies").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_studies_that_ship_are_valid(path: Path) -> None:
    from mqasearch.creation import load_study

    assert load_study(path).tasks[0].name == "hellaswag"


@pytest.mark.long
def test_a_selector_of_several_budgets_is_not_guessed(folder: Path, mqasearch: Command) -> None:
    write_study(folder / "studies" / "demo.yaml", budget=[1, 2], selectors=["sensitivity"])
    assert mqasearch("run studies/demo.yaml --storage sqlite:///two.db")[0] == 0
    code, _, err = mqasearch(
        "export --study-name demo --selector sensitivity -o one.json --storage sqlite:///two.db"
    )
    assert code == 2
    assert "demo-n1.sensitivity, demo-n2.sensitivity" in err
    assert not (folder / "one.json").exists()
    code, out, _ = mqasearch("compare --study-name demo --storage sqlite:///two.db")
    assert code == 0
    assert all(name in out for name in ("comparison", "demo-n1", "demo-n2"))


def test_a_folder_for_results_that_cannot_be_is_found_before_the_work(
    folder: Path, mqasearch: Command
) -> None:
    (folder / "taken").write_text("a file")
    code, out, err = mqasearch(
        "run studies/demo.yaml --storage sqlite:///s.db --output-dir taken/deeper"
    )
    assert (code, out) == (2, "")
    assert err.startswith("mqasearch: --output-dir taken/deeper: ")
    assert not (folder / "s.db").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("wrker", "Did you mean 'worker'"),
        ("worker", "Missing option '--study-name'; see mqasearch worker --help"),
        ("status -f xml", "'xml' is not one of 'table', 'json'"),
        ("worker --study-name s --n-trials 0", "'--n-trials'"),
    ],
)
def test_usage_errors_are_one_line(
    folder: Path, mqasearch: Command, line: str, message: str
) -> None:
    code, out, err = mqasearch(line)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith("mqasearch: ")
    assert message in err


@pytest.mark.long
def test_whoever_only_looks_needs_no_right_to_write(folder: Path, mqasearch: Command) -> None:
    assert mqasearch("run studies/demo.yaml --storage sqlite:///s.db")[0] == 0
    read_only = "'sqlite:///file:s.db?mode=ro&uri=true'"
    for command in ("status", "compare --study-name demo", "export --study-name demo -o m.json"):
        code, _, err = mqasearch(f"{command} --storage {read_only}")
        assert code == 0, err
    code, _, err = mqasearch(f"worker --study-name demo --storage {read_only}")
    assert code == 2
    assert "readonly" in err


def test_a_worker_whose_database_is_away_may_be_started_again(mqasearch: Command) -> None:
    code, out, err = mqasearch(
        "worker --study-name x --storage postgresql://u:canary@127.0.0.1:1/x"
    )
    assert (code, out) == (75, "")
    assert "127.0.0.1:1" in err
    assert "Traceback" not in err
    assert "canary" not in err


@pytest.mark.parametrize("name", ["study", "mask", "masks", "reproduce", "latency"])
def test_schemas_of_files_are_printed(mqasearch: Command, name: str) -> None:
    code, out, _ = mqasearch(f"schema {name}")
    assert code == 0
    Draft202012Validator.check_schema(json.loads(out))


def test_an_unknown_schema_is_answered_with_the_nearest_one(mqasearch: Command) -> None:
    code, _, err = mqasearch("schema studdy")
    assert code == 2
    assert "did you mean 'study'?" in err
