"""How often a race gives up a mask that would have won, and what it saves, on real scores.

    python benchmarks/racing.py --scores FILE          score pairs of layers, then measure
    python benchmarks/racing.py --scores FILE          again: measure on what is in FILE

Every ordered pair of masks is a race, the second being the incumbent. A stop is false where the
mask that was given up is, on all documents, at least as good as the incumbent.
"""

import argparse
import itertools
import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np

from mqasearch.conversion import ConvertibleModel, merge_of
from mqasearch.evaluation.metrics import higher_is_better
from mqasearch.evaluation.racing import StopRule
from mqasearch.evaluation.shared_prefix import SharedPrefixScorer
from mqasearch.families import family_of
from mqasearch.mask import LayerMask
from mqasearch.models import load_model
from mqasearch.score import Documents, Score, TaskSpec

METRICS = ("bits_per_byte", "choice_cross_entropy", "acc")
LEVELS = (0.05, 0.02, 0.01, 0.005, 0.001)


def score(arguments: argparse.Namespace) -> dict[str, Any]:
    """Per-document scores of all pairs of a model's last layers."""
    loaded = load_model(arguments.model)
    family = family_of(loaded.model.config.model_type)
    convertible = ConvertibleModel(loaded.model, family, merge_of(arguments.merge))
    scorer = SharedPrefixScorer(
        convertible, loaded.tokenizer, loaded.fingerprint, loaded.dtype, state_bytes=0
    )
    n_layers = scorer.shape.n_layers
    layers = range(n_layers - arguments.layers, n_layers)
    masks = [LayerMask.of(pair, n_layers) for pair in itertools.combinations(layers, 2)]
    scores = scorer.score_many(
        [mask.kv_heads(scorer.shape) for mask in masks],
        TaskSpec(arguments.task),
        Documents("search", arguments.documents),
    )
    found = [s.documents for s in scores if isinstance(s, Score)]
    rows = {metric: [list(one[metric]) for one in found] for metric in METRICS}
    return {"task": arguments.task, "model": arguments.model, "scores": rows}


def races(data: dict[str, Any], metric: str, rule: StopRule, n_races: int) -> dict[str, Any]:
    """False stops among the masks that would have won, and the documents that were scored."""
    upwards = higher_is_better(data["task"], metric)
    values = np.array(data["scores"][metric])
    n = values.shape[1]
    pairs = list(itertools.permutations(range(len(values)), 2))
    random.Random(0).shuffle(pairs)
    wrong = wins = scored = 0
    lost = 0.0
    for mask, incumbent in pairs[:n_races]:
        one, two = values[mask], values[incumbent]
        gain = (one.mean() - two.mean()) * (1 if upwards else -1)
        stop = next(
            (k for k in range(rule.part, n, rule.part) if rule.stops(one[:k], two, upwards)), n
        )
        wins += gain >= 0
        scored += stop
        if stop < n and gain >= 0:
            wrong += 1
            lost = max(lost, gain)
    return {
        "metric": metric,
        "level": rule.level,
        "false_stops": wrong / wins,
        "largest_gain_lost": lost,
        "documents_scored": scored / n / min(n_races, len(pairs)),
    }


def main() -> None:
    """Parse the command line, score unless that is done, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scores", type=Path, required=True, help="JSON of per-document scores")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--merge", default="mean")
    parser.add_argument("--task", default="hellaswag")
    parser.add_argument("--documents", type=int, default=100)
    parser.add_argument("--layers", type=int, default=16, help="the pairs of this many last layers")
    parser.add_argument("--races", type=int, default=4000)
    parser.add_argument("-f", "--format", choices=("table", "json"), default="table")
    arguments = parser.parse_args()
    if not arguments.scores.exists():
        arguments.scores.write_text(json.dumps(score(arguments)))
    data = json.loads(arguments.scores.read_text())
    found = [
        races(data, metric, StopRule(level=level), arguments.races)
        for metric in METRICS
        for level in LEVELS
    ]
    if arguments.format == "json":
        json.dump(found, sys.stdout, indent=2)
        return
    for row in found:
        print(
            *(
                f"{key} {value:<8.3g}" if key != "metric" else f"{value:22}"
                for key, value in row.items()
            )
        )


if __name__ == "__main__":
    main()
