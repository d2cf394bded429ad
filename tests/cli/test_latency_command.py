"""``mqasearch latency`` on a tiny model: table, JSON, figure, a mask, and bad input in one line."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import run_here
from fake_engine import FAKE, add_fake_engine
from jsonschema import Draft202012Validator

from mqasearch.creation import checked_study
from mqasearch.export import SCHEMA_VERSION, write_masks
from mqasearch.export.mask_json import schema
from mqasearch.mask import LayerMask
from mqasearch.models import load_model
from tests.models.checkpoints import save
from tests.tiny import tiny_model

Run = Callable[[str], tuple[int, str, str]]
QUICK = "--context 8 --batch-size 1 --n-tokens 2 --repetitions 1 --device cpu --dtype float32"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a mask of it and one of another model."""
    root = tmp_path_factory.mktemp("latency")
    save(tiny_model("llama", n_layers=4, n_kv_heads=2), root / "model")
    fingerprint = load_model(str(root / "model"), device="cpu", dtype="float32").fingerprint
    mask = LayerMask.of([1, 3], 4)
    for name, weights in (("mask", fingerprint), ("other", "2:" + "f" * 64)):
        document = {
            "schema_version": SCHEMA_VERSION,
            "model": {
                "id": "model",
                "fingerprint": weights,
                "n_layers": 4,
                "n_heads": 4,
                "n_kv_heads": 2,
            },
            "merge": {"name": "mean"},
            "mask": [int(flag) for flag in mask],
            "mqa_layers": list(mask.layers),
            "kv_heads": [2, 1, 2, 1],
            "kv_bytes_per_token": {"original": 1024, "converted": 768},
        }
        write_masks(document, root / f"{name}.json")
        if name == "mask":
            write_masks(_with_front(document), root / "masks.json")
            write_masks(_with_times(document), root / "timed.json")
    (root / "deep.json").write_text('{"a":' * 100_000)
    return root


def _with_times(best: dict[str, Any]) -> dict[str, Any]:
    """Two selectors' masks that were found under a decoding time."""
    times = {"context": 9, "batch_size": 2, "ms": {"2": 0.002, "1": 0.001}}
    best = best | {"budget": {"decode_ms": 0.0015, "latency": times}}
    other = best | {"mask": [1, 1, 0, 0], "mqa_layers": [0, 1], "kv_heads": [1, 1, 2, 2]}
    masks = [
        mask | {"study": {"name": "s", "selector": name, "trial_number": 1, "n_trials": 2}}
        for name, mask in (("gp", best), ("greedy", other), ("tpe", best))
    ]
    return _with_front(best) | {"masks": masks}


def _with_front(best: dict[str, Any]) -> dict[str, Any]:
    """What ``export`` writes: the mask, and the front that it is on."""
    every = ([2, 2, 2, 2], [2, 2, 2, 1], [2, 1, 2, 1])
    front = [
        {
            "mask": [int(n == 1) for n in heads],
            "mqa_layers": [layer for layer, n in enumerate(heads) if n == 1],
            "kv_heads": heads,
            "kv_bytes_per_token": 128 * sum(heads),
            "value": 0.0,
            "delta": 0.0,
        }
        for heads in every
    ]
    objective = {"direction": "minimize", "tasks": {"hellaswag": "kl"}, "original": 0.0}
    return {
        "schema_version": SCHEMA_VERSION,
        "study": "s",
        "objective": objective,
        "masks": [best],
        "front": front,
    }


@pytest.fixture
def mqasearch(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Runs the command line in this process, in the folder."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr("mqasearch.latency.machine.MIN_BUFFER_BYTES", 2**20)

    def run(line: str) -> tuple[int, str, str]:
        code = run_here(line, monkeypatch)
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_shares_of_the_layers_as_json_and_as_a_figure(mqasearch: Run, folder: Path) -> None:
    code, out, _ = mqasearch(f"latency model {QUICK} -f json -o figure.html")
    assert code == 0
    document = json.loads(out)
    Draft202012Validator(schema("latency")).validate(document)
    assert [variant["n_converted"] for variant in document["variants"]] == [0, 1, 2, 3, 4]
    assert "Plotly.newPlot" in (folder / "figure.html").read_text()


@pytest.mark.engine
def test_an_engine_that_is_not_installed(mqasearch: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    add_fake_engine(monkeypatch, replace(FAKE, module="no_such_module_anywhere"))
    code, out, err = mqasearch("latency absent --engine fake")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "pip install fake-engine" in err


def test_a_mask_against_the_original_as_a_table(mqasearch: Run) -> None:
    code, out, _ = mqasearch(f"latency model --mask mask.json {QUICK}")
    assert code == 0
    rows = [line for line in out.splitlines() if re.match(r"8 +1 ", line)]
    assert [row.split()[2] for row in rows] == ["original", "mask"]
    assert "GB/s" in out


def test_a_front_in_the_order_of_its_caches(mqasearch: Run, folder: Path) -> None:
    code, out, _ = mqasearch(f"latency model --mask masks.json --front {QUICK} -f json -o f.html")
    assert code == 0
    variants = json.loads(out)["variants"]
    assert [each["name"] for each in variants] == ["original", "87.5 % of KV", "75 % of KV"]
    assert [each["kv_heads"] for each in variants] == [[2] * 4, [2, 2, 2, 1], [2, 1, 2, 1]]


def test_masks_of_a_decoding_time_are_measured_at_its_setting(mqasearch: Run) -> None:
    quick = QUICK.replace("--context 8 --batch-size 1 ", "")
    code, out, err = mqasearch(f"latency model --mask timed.json {quick} -f json")
    assert code == 0, err
    document = json.loads(out)
    Draft202012Validator(schema("latency")).validate(document)
    assert [each["name"] for each in document["variants"]] == ["original", "gp, tpe", "greedy"]
    assert {(row["context"], row["batch_size"]) for row in document["rows"]} == {(9, 2)}
    found = document["budget"]
    assert [row["predicted_ms"] for row in found["masks"]] == pytest.approx([0.0015, 0.0015])
    code, out, _ = mqasearch(f"latency model --mask timed.json {QUICK}")
    assert code == 0
    assert "budget: 0.0015 ms per token at context 9, batch size 2" in out
    assert "beware: the measurement has no context 9, batch size 2" in out


def test_all_layers_with_each_number_of_heads(mqasearch: Run, folder: Path) -> None:
    code, out, _ = mqasearch(f"latency model --kv-heads 1 {QUICK} -f json -o heads.html")
    assert code == 0
    variants = json.loads(out)["variants"]
    assert [each["kv_heads"] for each in variants] == [[2] * 4, [2] * 4, [1] * 4]
    assert variants[1]["name"] == "2, converted code"


@pytest.mark.engine
def test_an_engine_runs_the_original_by_the_same_code(
    mqasearch: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_fake_engine(monkeypatch)
    code, out, _ = mqasearch(f"latency model --kv-heads 1 --engine fake {QUICK} -f json")
    assert code == 0
    variants = json.loads(out)["variants"]
    assert [each["kv_heads"] for each in variants] == [[2] * 4, [1] * 4]


def test_what_it_measures_is_the_budget_of_a_study(mqasearch: Run, folder: Path) -> None:
    """The gain is set, because that of so small a model may be noise."""
    quick = QUICK.replace("--repetitions 1", "--repetitions 5")
    code, out, _ = mqasearch(f"latency model --kv-heads 1 {quick} -f json")
    assert code == 0
    document = json.loads(out)
    _, unconverted, reduced = document["rows"]
    samples = unconverted["decode_speedup"]["samples"]
    reduced["decode_speedup"]["samples"] = [2 * each for each in samples]
    (folder / "latency.json").write_text(json.dumps(document))
    budget = {"decode_fraction": 0.5, "latency": "latency.json"}
    study = {"name": "s", "model": "fake:4", "tasks": ["hellaswag"], "budget": budget}
    (entry,) = checked_study(study, "s.yaml").budget
    assert entry.latency is not None
    ms = entry.latency.ms
    assert ms[2] == pytest.approx(2 * ms[1], rel=1e-4)
    assert entry.latency.original_ms == pytest.approx(
        1e3 * document["rows"][0]["decode"]["median"], rel=1e-4
    )


@pytest.mark.engine
def test_an_engine_in_another_process(mqasearch: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    add_fake_engine(monkeypatch)
    quick = QUICK.replace("--repetitions 1", "--repetitions 5")
    line = f"latency model --mask mask.json --engine fake {quick}"
    code, out, _ = mqasearch(line)
    assert code == 0
    assert "format fake-format" in out
    assert "peak" not in out
    assert "with mask, decoding" in out
    assert out.count("speedup") >= 2
    code, out, _ = mqasearch(f"{line} -f json")
    assert code == 0
    document = json.loads(out)
    assert document["engine"]["name"] == "fake"
    assert "with mask, decoding" in document["pays"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("latency absent --engine vlm", "'vllm'"),
        ("latency absent --engine transformer", "'transformers'"),
        ("latency absent --engine vllm --engine-python /absent/python", "/absent/python"),
        ("latency absent --engine-python python", "--engine-python"),
        ("latency absent/model/x", "absent"),
        ("latency model --context many", "--context 'many'"),
        ("latency model --context 8,", "--context '8,'"),
        ("latency model --batch-size 0", "--batch-size"),
        ("latency model --n-tokens 0", "--n-tokens"),
        ("latency model --repetitions -1", "--repetitions"),
        ("latency model --context 4000", "positions"),
        ("latency model --merge meen", "'mean'"),
        ("latency model --device tpu", "tpu"),
        ("latency model --dtype int4", "int4"),
        ("latency model --kv-heads 2", "the model has 2; possible: 1"),
        ("latency model --kv-heads one", "--kv-heads 'one'"),
        ("latency model --kv-heads 1 --mask mask.json", "give it or --mask"),
        ("latency model --front", "--front: give --mask MASKS.json too"),
        ("latency model --mask mask.json --front", "holds one mask and no front"),
        ("latency model --mask absent.json", "no such file"),
        ("latency model --mask deep.json", "nested too deeply"),
        ("latency model --mask other.json", "other weights"),
        ("latency model -o figure.png", r"\.html"),
        ("latency model -o nowhere/figure.html", "nowhere"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(mqasearch: Run, line: str, message: str) -> None:
    code, out, err = mqasearch(line)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert re.search(message, err), err
