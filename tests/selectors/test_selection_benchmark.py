"""The benchmark of selectors runs as its first lines say."""

import json
import subprocess
import sys
from pathlib import Path

from selector_workers import all_masks, pairwise_loss

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "selection.py"


def run(*options: str) -> dict[str, dict[str, float]]:
    command = [sys.executable, str(SCRIPT), "-f", "json", "--n-trials", "20", *options]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {row["selector"]: row for row in json.loads(output)["rows"]}


def test_it_judges_selectors_against_a_table(tmp_path: Path) -> None:
    loss = pairwise_loss(7, 3)
    masks = [mask for size in range(4) for mask in all_masks(7, size)]
    table = tmp_path / "table.json"
    table.write_text(json.dumps({"losses": {str(mask): loss(mask) for mask in masks}}))
    rows = run("--table", str(table), "--n-converted", "3")
    assert rows["greedy (lazy=False)"]["evaluations"] == 1 + 7 + 6 + 5
    assert rows["random"]["evaluations"] == rows["tpe"]["evaluations"] == 20
    assert all(row["regret"] >= 0 for row in rows.values())
