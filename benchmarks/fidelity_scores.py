"""Per-document scores of many masks, kept in a file: what fidelity.py and racing.py look at.

    python benchmarks/fidelity_scores.py --file scores.json --split search --documents 32
    python benchmarks/fidelity_scores.py --file scores.json --split confirmation --documents 64

The masks are every layer alone, and random masks of 5, 10 and 15 layers. Masks that are in the file
are not scored again. The file is written every minute, so that the work may be interrupted. Several
processes, each with its own file, share a GPU well: much of a small model's score is Python.
"""

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mqasearch.mask import LayerMask
from mqasearch.score import Documents, Score, TaskSpec
from mqasearch.scoring import Scorer, open_scoring
from mqasearch.spec import parse_spec

AT_ONCE = 31
"""Number of masks that are scored together."""

WRITE_EVERY = 60.0
"""Seconds between two writes of the file."""


class ScoreFile:
    """A file of ``{"TASK/SPLIT": {mask: {metric: [a value for each document]}}}``, and seconds."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data: dict[str, Any] = {"scores": {}, "seconds": {}}
        if path.exists():
            self.data = json.loads(path.read_text())
        self._written = time.monotonic()

    def values(self, task: str, split: str) -> dict[str, dict[str, list[float]]]:
        """Mask → metric → values per document, for every mask that was scored on these."""
        found: dict[str, dict[str, list[float]]] = self.data["scores"].setdefault(
            f"{task}/{split}", {}
        )
        return found

    def missing(self, masks: Sequence[str], task: str, split: str, n_docs: int) -> list[str]:
        """The masks that were scored on fewer than ``n_docs`` documents."""
        known = self.values(task, split)
        return [m for m in masks if m not in known or len(known[m]["kl"]) < n_docs]

    def keep(self, task: str, split: str, found: Mapping[str, Score]) -> None:
        """Add scores, and write the file if that was not done for ``WRITE_EVERY`` seconds."""
        for mask, score in found.items():
            columns = {m: [round(v, 7) for v in values] for m, values in score.documents.items()}
            self.values(task, split)[mask] = columns
            self.data["seconds"].setdefault(f"{task}/{split}", {})[mask] = score.seconds
        if time.monotonic() - self._written > WRITE_EVERY:
            self.write()

    def add(self, other: "ScoreFile") -> None:
        """Add another process's results; of two scores of a mask, keep that of more documents."""
        for where, masks in other.data["scores"].items():
            known = self.data["scores"].setdefault(where, {})
            seconds = self.data["seconds"].setdefault(where, {})
            for mask, columns in masks.items():
                if mask not in known or len(known[mask]["kl"]) < len(columns["kl"]):
                    known[mask], seconds[mask] = columns, other.data["seconds"][where][mask]
        self.data["searches"] = self.data.get("searches", []) + other.data.get("searches", [])

    def write(self) -> None:
        """Write the file; it is replaced at once, so that it is complete at any time."""
        self._written = time.monotonic()
        draft = self.path.with_suffix(".draft")
        draft.write_text(json.dumps(self.data))
        os.replace(draft, self.path)


def population(n_layers: int, sizes: Sequence[int], n_random: int) -> dict[str, list[str]]:
    """Group → masks: every layer alone, and random masks of each size; equal at every call."""
    groups = {"alone": [str(LayerMask.of([layer], n_layers)) for layer in range(n_layers)]}
    for size in sizes:
        rng = random.Random(f"fidelity {size}")
        drawn: dict[str, None] = {}
        while len(drawn) < n_random:
            drawn[str(LayerMask.of(rng.sample(range(n_layers), size), n_layers))] = None
        groups[f"random {size}"] = list(drawn)
    return groups


def scorer_for(arguments: argparse.Namespace) -> Scorer:
    """The scorer of a study with the default merge."""
    spec = parse_spec(
        {
            "name": "fidelity",
            "model": {"name": arguments.model, "dtype": arguments.dtype},
            "budget": 1,
            "tasks": ["hellaswag"],
            "documents": {"calibration_tokens": arguments.calibration_tokens},
            "selectors": ["sensitivity"],
        },
        "fidelity",
    )
    return open_scoring(spec, arguments.device).scorer


def score_masks(
    scorer: Scorer, file: ScoreFile, masks: Sequence[str], task: str, documents: Documents
) -> None:
    """Score the missing masks, the original first."""
    n_docs = documents.limit or 0
    original = "0" * scorer.shape.n_layers
    missing = sorted(file.missing([original, *masks], task, documents.split, n_docs))
    started = time.monotonic()
    for number, part in enumerate(_parts(missing), start=1):
        kv_heads = [LayerMask.parse(mask).kv_heads(scorer.shape) for mask in part]
        scores = scorer.score_many(kv_heads, TaskSpec(task), documents)
        found = {m: s for m, s in zip(part, scores, strict=True) if isinstance(s, Score)}
        file.keep(task, documents.split, found)
        done = min(number * AT_ONCE, len(missing))
        seconds = time.monotonic() - started
        left = seconds / done * (len(missing) - done)
        print(
            f"{task}/{documents.split}: {done} of {len(missing)} masks, {left:.0f} s left",
            file=sys.stderr,
            flush=True,
        )


def _parts(masks: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(masks), AT_ONCE):
        yield masks[start : start + AT_ONCE]


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that fidelity.py takes too."""
    parser.add_argument("--file", type=Path, required=True, help="JSON of per-document scores")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--calibration-tokens", type=int, default=8192)
    parser.add_argument("--sizes", type=int, nargs="*", default=[5, 10, 15])
    parser.add_argument("--random", type=int, default=40, help="masks of each size")


def main() -> None:
    """Parse the command line, and score the missing masks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_arguments(parser)
    parser.add_argument("--tasks", nargs="+", default=["hellaswag"])
    parser.add_argument("--split", choices=("search", "confirmation"), default="confirmation")
    parser.add_argument("--documents", type=int, nargs="+", default=[64], help="of each task")
    parser.add_argument("--groups", nargs="*", default=[], help="alone, 'random 5' …; all if none")
    arguments = parser.parse_args()
    scorer, file = scorer_for(arguments), ScoreFile(arguments.file)
    groups = population(scorer.shape.n_layers, arguments.sizes, arguments.random)
    chosen = arguments.groups or list(groups)
    masks = [mask for group in chosen for mask in groups[group]]
    limits = arguments.documents * len(arguments.tasks)
    try:
        for task, limit in zip(arguments.tasks, limits, strict=False):
            score_masks(scorer, file, masks, task, Documents(arguments.split, limit))
    finally:
        file.write()


if __name__ == "__main__":
    main()
