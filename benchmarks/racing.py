"""How often a race gives up a mask that would have won, and what it saves, on real scores.

    python benchmarks/racing.py --scores FILE --score      score masks that are not alike
    python benchmarks/racing.py --scores FILE              measure on what is in FILE

All single layers are scored, and random masks of 5 and of 10 layers; if scoring was interrupted, it
goes on from there. FILE is JSON: ``{"task": …, "model": …, "masks": ["0110…"], "scores": {metric:
[[per document] per mask]}}``.

Two masks of the same size race over the documents; the second is the incumbent, and the order of
the documents is drawn for each race. A stop is false if the mask that was given up is at least as
good as the incumbent on all documents. A search races every mask, in random order, against the best
one so far. It is measured how often a search ends with a worse mask than without races, and how
much worse that mask is.
"""

import argparse
import json
import math
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from scipy import stats

from mqasearch.evaluation import StopRule
from mqasearch.mask import LayerMask
from mqasearch.score import HIGHER_IS_BETTER, Documents, Score, TaskSpec

METRICS = ("kl", "bits_per_byte", "acc_norm")
LEVELS = (0.05, 0.01, 0.001)
SIZES = (5, 10)
CHUNK = 20
"""Number of masks that are scored together and then written."""


class Rule(Protocol):
    """When a mask is given up; the interface of ``StopRule``."""

    part: int
    least: int

    def stops(
        self, values: Sequence[float], incumbent: Sequence[float], higher_is_better: bool
    ) -> bool: ...


@dataclass(frozen=True, slots=True)
class Wilcoxon:
    """The rule of version 0.1, for comparison: a rank test, with the full level at each look."""

    part: int
    least: int
    level: float

    def stops(
        self, values: Sequence[float], incumbent: Sequence[float], higher_is_better: bool
    ) -> bool:
        """Whether a mask with these values on the first documents is worse by the rank test."""
        if len(values) < self.least:
            return False
        loss = np.asarray(values) - np.asarray(incumbent[: len(values)])
        if not loss.any():
            return False
        side = "less" if higher_is_better else "greater"
        found = stats.wilcoxon(loss, zero_method="pratt", alternative=side, method="asymptotic")
        return bool(found.pvalue < self.level)


def masks_to_score(n_layers: int, n_random: int) -> list[LayerMask]:
    """All single layers, then random masks of each size, no mask twice."""
    masks = [LayerMask.of([layer], n_layers) for layer in range(n_layers)]
    for size in SIZES:
        rng = random.Random(size)
        of_size: dict[str, LayerMask] = {}
        while len(of_size) < min(n_random, math.comb(n_layers, size)):
            mask = LayerMask.of(rng.sample(range(n_layers), size), n_layers)
            of_size[str(mask)] = mask
        masks += of_size.values()
    return masks


def score(arguments: argparse.Namespace) -> None:
    """Score the masks that FILE lacks, and write FILE after every ``CHUNK`` masks."""
    from mqasearch.scoring import open_scoring
    from mqasearch.spec import parse_spec

    file: Path = arguments.scores
    study = {
        "name": "racing",
        "model": arguments.model,
        "merge": arguments.merge,
        "budget": 1,
        "tasks": [arguments.task],
        "documents": {"calibration_tokens": arguments.calibration_tokens},
        "selectors": ["random"],
    }
    scorer = open_scoring(parse_spec(study, "benchmark")).scorer
    masks = masks_to_score(scorer.shape.n_layers, arguments.random)
    if file.exists():
        data = json.loads(file.read_text())
    else:
        head = {"task": arguments.task, "model": arguments.model, "masks": []}
        data = {**head, "scores": {metric: [] for metric in METRICS}}
    known = set(data["masks"])
    left = [mask for mask in masks if str(mask) not in known]
    task, documents = TaskSpec(arguments.task), Documents("search", arguments.documents)
    for start in range(0, len(left), CHUNK):
        some = left[start : start + CHUNK]
        scores = scorer.score_many([mask.kv_heads(scorer.shape) for mask in some], task, documents)
        for mask, found in zip(some, scores, strict=True):
            if isinstance(found, Score):
                data["masks"].append(str(mask))
                for metric, rows in data["scores"].items():
                    rows.append(list(found.documents[metric]))
        beside = file.with_suffix(".part")
        beside.write_text(json.dumps(data))
        beside.replace(file)
        print(f"{len(data['masks'])} of {len(masks)} masks", file=sys.stderr)


def race(
    rule: Rule, mask: np.ndarray, incumbent: np.ndarray, upwards: bool, order: np.ndarray
) -> int:
    """Number of documents on which a mask is scored: all, unless it is given up."""
    one, two = mask[order], incumbent[order]
    looks = range(rule.part, len(order), rule.part)
    stopped = (n for n in looks if rule.stops(one[:n], two, upwards))
    return next(stopped, len(order))


def races(values: np.ndarray, upwards: bool, rule: Rule, n_races: int) -> dict[str, float]:
    """Results of races between ordered pairs of masks, drawn at random."""
    rng = np.random.default_rng(0)
    n_masks, n_docs = values.shape
    wins = false = scored = 0
    lost = 0.0
    for _ in range(n_races):
        mask, incumbent = rng.choice(n_masks, 2, replace=False)
        gain = (values[mask].mean() - values[incumbent].mean()) * (1 if upwards else -1)
        n = race(rule, values[mask], values[incumbent], upwards, rng.permutation(n_docs))
        scored += n
        wins += gain >= 0
        if n < n_docs and gain >= 0:
            false += 1
            lost = max(lost, float(gain))
    return {
        "false_stops": false / wins if wins else math.nan,
        "largest_gain_lost": lost,
        "documents_scored": scored / n_races / n_docs,
    }


def searches(values: np.ndarray, upwards: bool, rule: Rule, n_searches: int) -> dict[str, float]:
    """Results of searches: all masks in random order, each races against the best one so far."""
    rng = np.random.default_rng(1)
    n_masks, n_docs = values.shape
    sign = -1 if upwards else 1
    loss = sign * values.mean(axis=1)
    scored = missed = 0
    regret = 0.0
    for _ in range(n_searches):
        first, *others = rng.permutation(n_masks)
        best, order = first, rng.permutation(n_docs)
        for mask in others:
            n = race(rule, values[mask], values[best], upwards, order)
            scored += n
            if n == n_docs and loss[mask] < loss[best]:
                best = mask
        missed += bool(loss[best] > loss.min())
        regret += float(loss[best] - loss.min())
    return {
        "best_mask_missed": missed / n_searches,
        "mean_regret": regret / n_searches,
        "documents_scored_in_search": scored / n_searches / (n_masks - 1) / n_docs,
    }


def measure(data: dict[str, Any], arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for every size of mask, metric, test and level."""
    sizes = np.array([mask.count("1") for mask in data["masks"]])
    for metric, rows in data["scores"].items():
        upwards = HIGHER_IS_BETTER[metric]
        for size in sorted(set(sizes.tolist())):
            values = np.array(rows)[sizes == size]
            if len(values) < 2:
                continue
            for kind in (StopRule, Wilcoxon):
                for level in LEVELS:
                    rule = kind(arguments.interval_steps, arguments.n_startup_steps, level)
                    yield {
                        "metric": metric,
                        "layers": size,
                        "masks": len(values),
                        "test": "mean" if kind is StopRule else "ranks",
                        "level": level,
                        **races(values, upwards, rule, arguments.races),
                        **searches(values, upwards, rule, arguments.searches),
                    }


def main() -> None:
    """Parse the command line; score, or measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scores", type=Path, required=True, help="JSON of per-document scores")
    parser.add_argument("--score", action="store_true", help="score what FILE lacks, and end")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--merge", default="aligned")
    parser.add_argument("--task", default="hellaswag")
    parser.add_argument("--documents", type=int, default=60)
    parser.add_argument("--calibration-tokens", type=int, default=8192)
    parser.add_argument("--random", type=int, default=200, help="random masks of each size")
    parser.add_argument("--n-startup-steps", type=int, default=16, help="before the first look")
    parser.add_argument("--interval-steps", type=int, default=8, help="between two looks")
    parser.add_argument("--races", type=int, default=2000, help="of each row")
    parser.add_argument("--searches", type=int, default=20, help="of each row")
    parser.add_argument("-f", "--format", choices=("table", "json"), default="table")
    arguments = parser.parse_args()
    if arguments.score:
        score(arguments)
        return
    found = list(measure(json.loads(arguments.scores.read_text()), arguments))
    if arguments.format == "json":
        json.dump(found, sys.stdout, indent=2)
        return
    print("\t".join(found[0]))
    for row in found:
        print("\t".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()))


if __name__ == "__main__":
    main()
