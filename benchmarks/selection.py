"""What each selector finds, and what it pays for it.

Every selector searches the same truths, and is judged by its regret: how much worse its best mask
is than the best known mask, divided by how much worse a random mask is (0 = optimal, 1 = no better
than one random mask). Every scored mask counts as an evaluation, also probes below the budget.
Selectors that do not end by themselves get ``--n-trials`` evaluations.

    python benchmarks/selection.py                     the fake scorer's losses, without noise
    python benchmarks/selection.py --pairs 0           losses that add up
    python benchmarks/selection.py --kv-heads 1,2,4 --kv-bytes-fraction 0.5 --n-trials 120
                                                       several numbers of KV heads, of 8
    python benchmarks/selection.py --table FILE        real losses, from a table
    python benchmarks/selection.py --table FILE --score    score a real model for that table first

A table holds the loss of every mask of some layers of a real model, so that the optimum is known by
brute force: of up to ``--n-converted`` layers, or of all levels with ``--kv-heads``.
"""

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from one_worker import trials_of

from mqasearch.budget import Budget
from mqasearch.mask import LayerMask, ModelShape
from mqasearch.score import Documents
from mqasearch.scoring import FakeScorer, open_scoring
from mqasearch.search_space import SearchSpace
from mqasearch.selectors import (
    Selector,
    best_neighbours,
    cheapest,
    masks_of_size,
    random_mask,
    selector_of,
)
from mqasearch.spec import parse_spec

Loss = Callable[[LayerMask], float]

ONE_LEVEL = ("alternating", "consecutive")
"""Selectors that refuse several levels."""

COMPETITORS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("alternating", {}),
    ("consecutive", {}),
    ("sensitivity", {}),
    ("greedy", {}),
    ("greedy", {"lazy": False}),
    ("gp", {"n_masks": 10}),
    ("gp", {"n_masks": 20}),
    ("gp", {"n_masks": 29}),
    ("evolution", {}),
    ("tpe", {}),
    ("random", {}),
)


@dataclass(frozen=True)
class Truth:
    """A search whose best mask is known, or nearly so.

    Attributes:
        space: the masks that may be proposed, and the budget.
        loss: returns the loss of a mask.
        best: the lowest known loss at the budget.
        typical: the median loss of random masks at the budget.
    """

    space: SearchSpace
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


@dataclass(frozen=True)
class FakeLoss:
    """A made-up loss: layers do harm alone and in pairs, more and more with each level.

    Attributes:
        linear: ``[n_layers, 1 + n_levels]`` harm of each level of each layer alone.
        roots: ``[n_layers, 1 + n_levels]`` how deep each level is, from 0 to 1.
        pairs: ``[n_layers, n_layers]`` harm of two layers together, symmetric.
    """

    linear: np.ndarray
    roots: np.ndarray
    pairs: np.ndarray

    def __call__(self, mask: LayerMask) -> float:
        places, levels = np.arange(len(mask)), np.array(mask.levels)
        depths = self.roots[places, levels]
        together = depths @ self.pairs @ depths / 2
        return float(1 + self.linear[places, levels].sum() + together)


def fake_loss(space: SearchSpace, seed: int, pairs: float) -> FakeLoss:
    """The losses of the fake scorer without noise, with ``pairs`` times its interactions.

    With several levels, the depth of a level is the share of heads that it saves to a power from 1
    to 4, which each layer draws: half the heads cost some layers next to nothing.
    """
    n_layers = space.n_layers
    scorer = FakeScorer(n_layers, n_kv_heads=2, seed=seed)
    alone = np.array([scorer.loss(_heads([layer], n_layers)) for layer in range(n_layers)])
    both = np.zeros((n_layers, n_layers))
    for one, two in itertools.combinations(range(n_layers), 2):
        loss = scorer.loss(_heads([one, two], n_layers)) - alone[one] - alone[two]
        both[one, two] = both[two, one] = pairs * loss
    powers = np.random.default_rng(seed).uniform(1, 4, size=(n_layers, 1))
    depths = (np.array((0, *space.savings)) / space.savings[-1]) ** powers
    return FakeLoss(alone[:, None] * depths, depths, both)


def _heads(layers: Sequence[int], n_layers: int) -> tuple[int, ...]:
    return tuple(1 if layer in layers else 2 for layer in range(n_layers))


def fake_truth(space: SearchSpace, seed: int, pairs: float) -> Truth:
    """A truth whose best mask is found by descent over switches from many masks.

    It is not always the optimum.
    """
    loss = fake_loss(space, seed, pairs)
    rng = np.random.default_rng(seed)
    drawn = [random_mask(space, space.least, rng) for _ in range(200)]
    starts = [cheapest(space, loss.linear[:, 1:]), *drawn[:50]]
    best = min(loss(_descended(space, loss, mask)) for mask in starts if mask is not None)
    return Truth(space, loss, best, float(np.median([loss(mask) for mask in drawn])))


def _descended(space: SearchSpace, loss: FakeLoss, mask: LayerMask) -> LayerMask:
    allowed = np.full((space.n_layers, 1 + space.n_levels), True)
    while True:
        rows, added = best_neighbours(space, loss, np.array(mask.levels), allowed, 1)
        if not len(rows) or added[0] > -1e-12:
            return mask
        mask = LayerMask(tuple(map(int, rows[0])))


def table_truth(table: dict[str, Any], space: SearchSpace) -> Truth:
    """The only truth of a table, by brute force.

    Raises:
        SystemExit: the table lacks masks at the budget.
    """
    losses = {LayerMask.parse(mask): float(loss) for mask, loss in table["losses"].items()}
    at_budget = [mask for mask in losses if space.is_at_budget(mask)]
    if len(at_budget) != masks_of_size(space, space.least).n:
        raise SystemExit(f"the table holds {len(at_budget)} of the masks at this budget")
    found = [losses[mask] for mask in at_budget]
    return Truth(space, lambda mask: losses[mask], min(found), float(np.median(found)))


def score_table(arguments: argparse.Namespace) -> dict[str, Any]:
    """Score every mask of ``n_layers`` evenly spaced layers of a model.

    With one number of KV heads, these are masks of up to ``n_converted`` layers.
    """
    spec = parse_spec(
        {
            "name": "benchmark",
            "model": arguments.model,
            "merge": arguments.merge,
            "kv_heads": arguments.kv_heads,
            "budget": {"kv_bytes_fraction": 0.9},
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
    levels = range(len(arguments.kv_heads) + 1)
    most = arguments.n_converted if len(levels) == 2 else len(layers)
    every = (LayerMask(row) for row in itertools.product(levels, repeat=len(layers)))
    chosen = [mask for mask in every if mask.n_converted <= most]
    losses = {}
    started = time.monotonic()
    for number, few in enumerate(chosen, 1):
        mask = LayerMask.empty(depth)
        for place, level in enumerate(few):
            mask = mask.with_level(layers[place], level)
        kv_heads = mask.kv_heads(scorer.shape, arguments.kv_heads)
        losses[str(few)] = scorer.score(kv_heads, task, documents).values[task.metric]
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
        "kv_heads": arguments.kv_heads,
        "losses": losses,
    }


def compare(truths: Sequence[Truth], limit: int) -> list[Row]:
    """Run every selector on every truth."""
    has_levels = truths[0].space.n_levels > 1
    return [
        _row(name, parameters, truths, limit)
        for name, parameters in COMPETITORS
        if not (has_levels and name in ONE_LEVEL)
    ]


def _row(name: str, parameters: dict[str, Any], truths: Sequence[Truth], limit: int) -> Row:
    started = time.process_time()
    found = [
        (truth, *search(selector_of(name, truth.space, seed, **parameters), truth, limit))
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


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _space(arguments: argparse.Namespace, n_layers: int) -> SearchSpace:
    n = arguments.n_kv_heads
    shape = ModelShape(n_layers, n, n, 64, 64 * n, 2)
    if arguments.kv_bytes_fraction is None:
        return Budget(n_layers=arguments.n_converted).space(shape, arguments.kv_heads)
    budget = Budget(kv_bytes_fraction=arguments.kv_bytes_fraction)
    return budget.space(shape, arguments.kv_heads)


def main() -> None:
    """Parse the command line, search, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n-layers", type=int, default=30, help="(10 suits a table)")
    parser.add_argument("--n-converted", type=int, default=5, help="layers of the budget")
    parser.add_argument("--n-kv-heads", type=int, default=8, help="of the made-up model")
    parser.add_argument(
        "--kv-heads", type=_numbers, default=[1], help="of a converted layer: 1,2,4"
    )
    parser.add_argument("--kv-bytes-fraction", type=float, help="budget in place of layers")
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
        table = json.loads(arguments.table.read_text())
        n_layers = len(next(iter(table["losses"])))
        truths = [table_truth(table, _space(arguments, n_layers))]
    else:
        space = _space(arguments, arguments.n_layers)
        truths = [fake_truth(space, seed, arguments.pairs) for seed in range(arguments.truths)]
    rows = compare(truths, arguments.n_trials)
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
