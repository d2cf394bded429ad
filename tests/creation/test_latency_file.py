"""Times in a study file from a file that ``mqasearch latency`` wrote."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mqasearch.creation import checked_study
from mqasearch.creation.latency_file import read_times, with_times
from mqasearch.errors import SpecError, UserError
from mqasearch.mask import ModelShape
from mqasearch.spec import LatencyFile, parse_spec

GOOD: dict[str, Any] = {"name": "s", "model": "fake:6", "tasks": ["hellaswag"]}
SHAPE = ModelShape(6, 8, 4, 16, 128, 2)
SLOW = (0.9, 1.0, 1.0, 1.0, 3.0)
SETTINGS = ((512, 1), (2048, 1), (2048, 4))


LATENCY = {"context": 1, "batch_size": 1, "ms": {2: 3, 1: 2}}
ALONE = [{"name": "original (4)", "kv_heads": [4] * 6}]
BACKWARDS = [{"name": "1 KV head", "kv_heads": [1] * 6}, *ALONE]


def spread(*samples: float) -> dict[str, Any]:
    middle = sorted(samples)[len(samples) // 2]
    return {
        "median": middle,
        "low": min(samples),
        "high": max(samples),
        "samples": list(samples),
    }


def measured(**changes: Any) -> dict[str, Any]:
    """What is read of a measurement of a model with 4 KV heads, and with 1 and 2 of them."""
    heads = {"original (4)": 4, "2 KV heads": 2, "half": None, "1 KV head": 1}
    speedups = {"original (4)": 1.0, "2 KV heads": 1.5, "half": 1.6, "1 KV head": 2.0}
    rows = [
        {
            "variant": name,
            "context": context,
            "batch_size": batch_size,
            "decode": spread(*(batch_size * context / 1e5 * slow / speedup**2 for slow in SLOW)),
            "decode_speedup": spread(*(1 + (speedup - 1) * part for part in (1, 0.9, 1, 1, 1.1))),
        }
        for context, batch_size in SETTINGS
        for name, speedup in speedups.items()
    ]
    return {
        "model": {"id": "m", "n_layers": 6, "windows": [None] * 6},
        "n_tokens": 32,
        "engine": {"name": "vllm", "version": "0.11"},
        "machine": {"device": "cuda:0", "name": "a GPU", "dtype": "bfloat16"},
        "variants": [
            {"name": name, "kv_heads": [n or 4, *(n or 1 for _ in range(5))]}
            for name, n in heads.items()
        ],
        "rows": rows,
    } | changes


def windows(*each: int | None) -> dict[str, Any]:
    """A model with these windows."""
    return {"id": "m", "n_layers": len(each), "windows": list(each)}


def one_setting() -> dict[str, Any]:
    """The measurement of one setting alone, with one KV head and with all four."""
    document = measured()
    del document["variants"][1:3]
    names = {variant["name"] for variant in document["variants"]}
    document["rows"] = [
        row
        for row in document["rows"]
        if (row["context"], row["batch_size"]) == (2048, 1) and row["variant"] in names
    ]
    return document


def written(path: Path, document: Any) -> str:
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return str(path)


def test_the_times_of_a_setting_are_the_originals_over_the_speedups_of_the_rounds(
    tmp_path: Path,
) -> None:
    file = written(tmp_path / "l.json", measured())
    for batch_size, factor in ((1, 1), (4, 4)):
        chosen = LatencyFile(file=file, context=2048, batch_size=batch_size)
        times = read_times(chosen, [1, 2])
        assert (times["context"], times["batch_size"]) == (2048, batch_size)
        assert times["ms"] == {
            1: 10.24 * factor,
            2: pytest.approx(20.48 / 1.5 * factor, rel=1e-5),
            4: 20.48 * factor,
        }
        assert times["measured_with"] == "m in vllm 0.11 on cuda:0 (a GPU), bfloat16"


def test_what_layers_save_is_told_from_what_the_converted_code_saves(tmp_path: Path) -> None:
    """In transformers that code is twice as fast as the original's before any head is merged."""
    document = measured(engine={"name": "transformers", "version": "5"})
    document["variants"][2] = {"name": "half", "kv_heads": [4] * 6}  # the second in each setting
    times = read_times(
        LatencyFile(file=written(tmp_path / "l.json", document), context=2048, batch_size=1), [1]
    )
    assert times["original_ms"] == 20.48
    assert times["ms"][4] == pytest.approx(20.48 / 1.6)
    assert times["ms"][1] == pytest.approx(20.48 / 2)
    budget = {"decode_fraction": 0.55, "latency": times}
    (entry,) = checked_study(GOOD | {"budget": budget}, "s.yaml").budget
    assert entry.budget.decode_ms == pytest.approx(0.55 * 20.48)
    assert entry.budget.space(SHAPE).least == 4  # of 6: 12.8 → 10.24 ms, and 11.26 is wanted


def test_a_study_file_holds_the_times_and_is_read_again_as_it_is(tmp_path: Path) -> None:
    file = written(tmp_path / "l.json", measured())
    budgets = [{"decode_fraction": "3/4", "latency": {"file": file, "context": 512}}, 2]
    spec = checked_study(GOOD | {"budget": budgets}, "s.yaml")
    assert [entry.label for entry in spec.budget] == ["decode75-512x1", "n2"]
    assert spec.budget[0].budget.decode_ms == pytest.approx(0.75 * 5.12)
    (tmp_path / "l.json").unlink()
    again = json.loads(json.dumps(spec.model_dump(mode="json")))
    assert checked_study(again, "s.yaml") == spec


def test_other_budgets_are_left_as_they_are() -> None:
    for budget in ("auto", 3, [1, {"kv_bytes_fraction": 0.5}], {"decode_ms": 3}, None, "x", []):
        assert with_times({"budget": budget}) == ({"budget": budget}, [])
    assert with_times({}) == ({}, [])


@pytest.mark.parametrize(
    ("chosen", "document", "message"),
    [
        ({}, {}, "several settings fit: it has context 512, batch size 1; context 2048, batch si"),
        (
            {"context": 4096},
            {},
            r"no such setting: .* \{file: .*, context: 2048, batch_size: 4\}, or",
        ),
        ({"context": 512}, "{", "not JSON"),
        ({"context": 512}, {"rows": []}, "not what `mqasearch latency -f json` writes: rows: "),
        ({"context": 512}, "1" * 5000, "not what|not JSON"),
        ({"context": 512}, {"model": windows(543, None)}, "measure --context 511 or less"),
        ({"context": 512}, {"model": {"id": "m", "n_layers": 2}}, "model.windows: Field required"),
        ({"context": 512}, {"rows": [{}]}, "rows.0.variant: Field required"),
        (
            {"context": 512},
            {"engine": {"name": "transformers", "version": "5"}},
            "no time of the converted code with the model's own 4 KV heads; write it with",
        ),
        ({"context": 512}, {"variants": [{"name": "x", "kv_heads": [2, 1]}]}, "is not the orig"),
        ({"context": 512}, {"variants": [{"name": "x", "kv_heads": [2, 2]}]}, "has no row of 'x'"),
        ({"context": 512}, {"variants": BACKWARDS}, "is not the original"),
        ({"context": 512}, {"variants": ALONE}, "has no time with 1 KV heads .* write it with"),
        ({"context": 512, "batch_size": 0}, {}, "batch_size: .* greater than or equal to 1"),
        ({"contxt": 512}, {}, "contxt: .*; give a file, or {file: "),
    ],
)
def test_a_file_that_gives_no_times_is_told_with_the_other_faults(
    tmp_path: Path, chosen: dict[str, Any], document: Any, message: str
) -> None:
    content = document if isinstance(document, str) else measured(**document)
    file = written(tmp_path / "l.json", content)
    budget = [2, {"decode_ms": 4, "latency": {"file": file, **chosen}}]
    with pytest.raises(SpecError) as caught:
        checked_study(GOOD | {"budget": budget, "seed": "x"}, "s.yaml")
    fault, seed = caught.value.faults
    assert fault.startswith("budget.1.latency: ")
    assert seed.startswith("seed: ")
    assert re.search(message, fault), fault


def test_layers_are_alike_if_no_window_is_shorter_than_the_context(tmp_path: Path) -> None:
    file = written(tmp_path / "l.json", measured(model=windows(544, None)))  # 32 tokens are decoded
    assert set(read_times(LatencyFile(file=file, context=512), [2])["ms"]) == {2, 4}


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([2.0, 2.0], "2 repetitions are too few"),
        ([0.9, 1.3, 1.2, 1.1, 1.2], r"not faster beyond noise .* \(speedup 1.20 \[0.90, 1.30\]\)"),
    ],
)
def test_a_gain_that_may_be_noise_is_refused(
    tmp_path: Path, samples: list[float], message: str
) -> None:
    document = measured()
    for row in document["rows"]:
        gains = {"1 KV head": samples, "2 KV heads": [1.5] * len(samples)}
        row["decode_speedup"] = spread(*gains.get(row["variant"], [1.0] * len(samples)))
    with pytest.raises(UserError, match=message):
        read_times(LatencyFile(file=written(tmp_path / "l.json", document), context=512), [1])


def test_faults_of_other_budgets_keep_their_places(tmp_path: Path) -> None:
    rows = [{"decode_ms": 4, "latency": str(tmp_path / "absent.json")}, {"n_layers": 0}]
    with pytest.raises(SpecError) as caught:
        checked_study(GOOD | {"budget": rows}, "s.yaml")
    assert [fault.partition(":")[0] for fault in caught.value.faults] == [
        "budget.0.latency",
        "budget.1.n_layers",
    ]


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b"])
def test_what_no_file_can_be_called_is_one_line(name: str) -> None:
    with pytest.raises(UserError, match="is not the name of a file"):
        read_times(LatencyFile(file=name), [1])


def test_one_time_at_two_settings_makes_two_comparisons(tmp_path: Path) -> None:
    file = written(tmp_path / "l.json", measured())
    rows = [
        {
            "decode_ms": 1.5e5 - number,
            "latency": {"file": file, "context": 2048, "batch_size": size},
        }
        for number, size in enumerate((1, 4))
    ]
    rows += [{**rows[0], "latency": rows[1]["latency"]}]
    spec = checked_study(GOOD | {"budget": rows}, "s.yaml")
    assert [*spec.comparisons()] == [
        "s-ms150000-2048x1",
        "s-ms149999-2048x4",
        "s-ms150000-2048x4",
    ]
    for name, one in spec.comparisons().items():
        assert parse_spec(one.model_dump(mode="json"), name) == one


def test_a_missing_file_says_how_to_write_it(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"No such file.*; write it with `mqasearch latency MODEL --kv-"
    ):
        read_times(LatencyFile(file=str(tmp_path / "absent.json")), [1])


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"decode_ms": 4}, "a decoding time needs measured ones: give latency: FILE.json"),
        ({"n_layers": 2, "latency": LATENCY}, "goes"),
        ({"decode_ms": 4, "n_layers": 2}, "give exactly one of"),
        ({"decode_ms": 4, "latency": {"context": 1, "batch_size": 1, "ms": {2: 3}}}, "at least 2"),
        ({"decode_ms": 4, "latency": {"contxt": 1}}, "did you mean 'context'"),
        ({"decode_ms": 4, "latency": LATENCY | {"ms": {"1": 2, 1: 3, 4: 8}}}, "given twice"),
        ({"decode_ms": 4, "latency": LATENCY | {"ms": {True: 2, 4: 8}}}, "'True' is not a number"),
        ({"decode_ms": 4, "latency": LATENCY | {"ms": {"01": 2, 4: 8}}}, "'01' is not a number of"),
        ({"decode_ms": 0}, "greater than 0"),
        ({"decode_fraction": 1.5}, "less than 1"),
    ],
)
def test_a_budget_in_time_that_is_not_whole_is_refused(
    budget: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        checked_study(GOOD | {"budget": budget}, "s.yaml")
