"""What each selector finds, and what it pays for it.

Every selector searches the same truths, and is judged by its regret: how much worse its best mask
is than the best known mask, divided by how much worse a random mask is (0 = optimal, 1 = no better
than one random mask). Every scored mask counts as an evaluation, also probes below the budget.
Selectors that do not end by themselves get ``--n-trials`` evaluations.

    python benchmarks/selection.py                     the fake scorer's losses, without noise
    python benchmarks/selection.py --pairs 0           losses that add up
    python benchmarks/selection.py --table FILE        real losses, from a table
    python benchmarks/selection.py --table FILE --score    score a real model for that table first

A table holds the loss of every mask of up to ``--n-converted`` layers, chosen from some layers of a
real model, so that the optimum is known by brute force.
"""

import argparse
import itertools
import json
import math
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from one_worker import trials_of

from mqasearch.mask import LayerMask
from mqasearch.score import Documents
from mqasearch.scoring import FakeScorer, open_scoring
from mqasearch.selectors import Selector, selector_of
from mqasearch.spec import parse_spec

Loss = Callable[[LayerMask], float]

COMPETITORS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("alternating", {}),
    ("consecutive", {}),
    ("sensitivity", {}),
    ("greedy", {}),
    ("greedy", {"lazy": False}),
    ("gp", {"n_masks": 10}),
    ("gp", {"n_masks": 20}),
    ("tpe", {}),
    ("random", {}),
)


@dataclass(frozen=True)
class Truth:
    """A search whose best mask is known, or nearly so.

    Attributes:
        n_layers: number of layers that may be converted.
        loss: returns the loss of a mask.
        best: the lowest known loss at the budget.
        typical: the median loss of random masks at the budget.
    """

    n_layers: int
    loss: Loss
    best: float
    typical: float

    def regret(self, loss: float) -> float:
        return (loss - self.best) / (self.typical - self.best)


@dataclass(frozen=True)
class Row:
    """One selector's results over all truths.

    Attributes:
        selector: the selector's name with its parameters.
        evaluations: mean number of masks scored.
        regret: mean regret.
        worst_regret: largest regret.
        optimal: share of the truths whose best known mask it found.
        seconds: mean seconds of its own work per search; losses cost nothing here.
    """

    selector: str
    evaluations: float
    regret: float
    worst_regret: float
    optimal: float
    seconds: float


def search(selector: Selector, truth: Truth, limit: int) -> tuple[float, int]:
    """(best loss at the budget, evaluations) of one search by one worker."""
    n_trials = None if selector.ends else limit
    trials = [*itertools.islice(trials_of(selector, truth.loss), n_trials)]
    return min(t.loss for t in trials if t.state == "complete"), len(trials)


def fake_truths(n_layers: int, n_converted: int, n: int, pairs: float) -> list[Truth]:
    """Made-up models of the fake scorer, with ``pairs`` times its strength of interactions."""
    return [
        _truth(n_layers, n_converted, _fake_loss(n_layers, seed, pairs), seed) for seed in range(n)
    ]


def _fake_loss(n_layers: int, seed: int, pairs: float) -> Loss:
    scorer = FakeScorer(n_layers, n_kv_heads=2, seed=seed)
    alone = np.array([scorer.loss(_heads([layer], n_layers)) for layer in range(n_layers)])

    def loss(mask: LayerMask) -> float:
        together = scorer.loss(_heads(mask.layers, n_layers))
        added = float(alone[list(mask.layers)].sum())
        return 1 + added + pairs * (together - added)

    return loss


def _heads(layers: Any, n_layers: int) -> tuple[int, ...]:
    return tuple(1 if layer in layers else 2 for layer in range(n_layers))


def _truth(n_layers: int, n_converted: int, loss: Loss, seed: int) -> Truth:
    """A truth whose best mask is found by descent over swaps from many random masks.

    It is not always the optimum.
    """
    rng = random.Random(seed)
    starts = [LayerMask.of(rng.sample(range(n_layers), n_converted), n_layers) for _ in range(200)]
    best = min(_descend(loss, mask) for mask in starts[:20])
    return Truth(n_layers, loss, best, float(np.median([loss(mask) for mask in starts])))


def _descend(loss: Loss, mask: LayerMask) -> float:
    while True:
        others = set(range(len(mask))) - set(mask.layers)
        swaps = (
            LayerMask.of({*mask.layers, added} - {removed}, len(mask))
            for removed, added in itertools.product(mask.layers, others)
        )
        better = min(swaps, key=loss, default=mask)
        if loss(better) >= loss(mask):
            return loss(mask)
        mask = better


def table_truths(table: dict[str, Any], n_converted: int) -> list[Truth]:
    """The only truth of a table, by brute force.

    Raises:
        SystemExit: the table has no masks of ``n_converted`` layers.
    """
    losses = table["losses"]
    n_layers = len(next(iter(losses)))
    at_budget = [loss for mask, loss in losses.items() if mask.count("1") == n_converted]
    if len(at_budget) != math.comb(n_layers, n_converted):
        raise SystemExit(f"the table holds no full set of masks with {n_converted} layers")
    best, typical = min(at_budget), float(np.median(at_budget))
    return [Truth(n_layers, lambda mask: float(losses[str(mask)]), best, typical)]


def score_table(arguments: argparse.Namespace) -> dict[str, Any]:
    """Score every mask of up to ``n_converted`` of ``n_layers`` evenly spaced layers of a model."""
    spec = parse_spec(
        {
            "name": "benchmark",
            "model": arguments.model,
            "merge": arguments.merge,
            "budget": arguments.n_converted,
            "tasks": [{"name": arguments.task, "limit": arguments.documents}],
            "selectors": ["exhaustive"],
        },
        "benchmark",
    )
    scorer = open_scoring(spec).scorer
    task = spec.task_specs[0]
    documents = Documents("search", task.limit, spec.documents.seed)
    depth = scorer.shape.n_layers
    layers = [round(n) for n in np.linspace(0, depth - 1, arguments.n_layers)]
    sizes = range(arguments.n_converted + 1)
    chosen = [c for size in sizes for c in itertools.combinations(range(len(layers)), size)]
    losses = {}
    started = time.monotonic()
    for number, places in enumerate(chosen, 1):
        mask = LayerMask.of((layers[place] for place in places), depth)
        score = scorer.score(mask.kv_heads(scorer.shape), task, documents)
        losses[str(LayerMask.of(places, len(layers)))] = score.values[task.metric]
        if number % 20 == 0:
            seconds = (time.monotonic() - started) / number * (len(chosen) - number)
            print(f"{number} of {len(chosen)} masks, {seconds:.0f} s left", file=sys.stderr)
    return {
        "model": arguments.model,
        "merge": arguments.merge,
        "task": arguments.task,
        "metric": task.metric,
        "documents": arguments.documents,
        "layers": layers,
        "losses": losses,
    }


def compare(truths: Sequence[Truth], n_converted: int, limit: int) -> list[Row]:
    """Run every selector on every truth."""
    return [_row(name, parameters, truths, n_converted, limit) for name, parameters in COMPETITORS]


def _row(
    name: str, parameters: dict[str, Any], truths: Sequence[Truth], n_converted: int, limit: int
) -> Row:
    started = time.process_time()
    found = [
        (
            truth,
            *search(
                selector_of(name, truth.n_layers, n_converted, seed, **parameters), truth, limit
            ),
        )
        for seed, truth in enumerate(truths)
    ]
    regrets = [truth.regret(loss) for truth, loss, _ in found]
    options = ", ".join(f"{key}={value}" for key, value in parameters.items())
    return Row(
        selector=f"{name} ({options})" if options else name,
        evaluations=float(np.mean([n for _, _, n in found])),
        regret=float(np.mean(regrets)),
        worst_regret=float(np.max(regrets)),
        optimal=float(np.mean([regret < 1e-9 for regret in regrets])),
        seconds=(time.process_time() - started) / len(truths),
    )


def main() -> None:
    """Parse the command line, search, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n-layers", type=int, default=30, help="(10 suits a table)")
    parser.add_argument("--n-converted", type=int, default=5, help="layers of the budget")
    parser.add_argument("--n-trials", type=int, default=50, help="for selectors without an end")
    parser.add_argument("--truths", type=int, default=20, help="made-up models to search")
    parser.add_argument("--pairs", type=float, default=1.0, help="strength of interactions")
    parser.add_argument("--table", type=Path, help="losses of a real model (JSON)")
    parser.add_argument("--score", action="store_true", help="write --table first")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--merge", default="mean")
    parser.add_argument("--task", default="hellaswag")
    parser.add_argument("--documents", type=int, default=20)
    parser.add_argument("-f", "--format", choices=("table", "json"), default="table")
    arguments = parser.parse_args()
    if arguments.score:
        arguments.table.write_text(json.dumps(score_table(arguments), indent=1))
    if arguments.table:
        truths = table_truths(json.loads(arguments.table.read_text()), arguments.n_converted)
    else:
        truths = fake_truths(
            arguments.n_layers, arguments.n_converted, arguments.truths, arguments.pairs
        )
    rows = compare(truths, arguments.n_converted, arguments.n_trials)
    if arguments.format == "json":
        settings = {key: str(value) for key, value in vars(arguments).items() if value is not None}
        print(json.dumps({"rows": [asdict(row) for row in rows], "settings": settings}, indent=1))
        return
    print(f"{'selector':24}{'evaluations':>12}{'regret':>9}{'worst':>9}{'optimal':>9}{'s':>8}")
    for row in rows:
        print(
            f"{row.selector:24}{row.evaluations:12.1f}{row.regret:9.4f}{row.worst_regret:9.4f}"
            f"{row.optimal:9.0%}{row.seconds:8.2f}"
        )


if __name__ == "__main__":
    main()
