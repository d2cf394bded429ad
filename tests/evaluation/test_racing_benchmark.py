"""The benchmark of races scores and measures as its first lines say."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "racing.py"


def run(*options: str) -> str:
    command = [sys.executable, str(SCRIPT), *options]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_masks_that_are_not_alike_are_scored_and_raced(tmp_path: Path) -> None:
    file = tmp_path / "scores.json"
    options = ["--scores", str(file), "--model", "fake:12", "--documents", "80"]
    run(*options, "--score", "--random", "12")
    data = json.loads(file.read_text())
    assert sorted(mask.count("1") for mask in data["masks"]) == [1] * 12 + [5] * 12 + [10] * 12
    assert len(set(data["masks"])) == 36
    assert {len(rows) for rows in data["scores"].values()} == {36}
    assert {len(row) for rows in data["scores"].values() for row in rows} == {80}
    run(*options, "--score", "--random", "12")
    assert json.loads(file.read_text()) == data  # nothing is scored twice

    rows: list[dict[str, Any]] = json.loads(
        run(*options, "--races", "150", "--searches", "2", "-f", "json")
    )
    assert {(row["metric"], row["layers"]) for row in rows} == {
        (metric, size) for metric in ("kl", "bits_per_byte", "acc_norm") for size in (1, 5, 10)
    }
    for row in rows:
        assert 0 < row["documents_scored"] <= 1
        if row["test"] == "mean":
            assert row["false_stops"] <= row["level"] + 0.02
    saving = [row for row in rows if row["metric"] == "kl" and row["test"] == "mean"]
    assert min(row["documents_scored"] for row in saving) < 0.8
