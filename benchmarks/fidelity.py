"""Which metric on how many documents guides a search to masks that are truly good?

    python benchmarks/fidelity_scores.py --file scores.json --split search --documents 32
    python benchmarks/fidelity_scores.py --file scores.json --split confirmation --documents 64
    python benchmarks/fidelity.py --file scores.json rank       correlations with held-out truth
    python benchmarks/fidelity.py --file scores.json search     regret of whole searches
    python benchmarks/fidelity.py --file scores.json price      one search against stock HFLM

``rank`` needs only the file. ``search`` runs selectors on the model, judges the masks that they
choose on held-out documents, and keeps all scores in the file; it may be interrupted. See
fidelity.md.
"""

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from fidelity_scores import ScoreFile, add_model_arguments, population, score_masks, scorer_for
from scipy import stats
from selection import Truth, search

from mqasearch.mask import LayerMask
from mqasearch.score import Documents, TaskSpec
from mqasearch.scoring import ResidentLM, Scorer, SharedPrefixScorer
from mqasearch.search_space import SearchSpace
from mqasearch.selectors import selector_of
from mqasearch.tasks import higher_is_better

TRUTHS = ("kl", "bits_per_byte", "acc_norm", "flips")
SELECTORS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "sensitivity": ("sensitivity", {}),
    "greedy": ("greedy", {}),
    "exact greedy": ("greedy", {"lazy": False}),
    "gp": ("gp", {"n_masks": 10}),
    "tpe": ("tpe", {}),
}
"""Name in this benchmark → selector and parameters."""


class Table:
    """Losses of masks from a file. Lower is always better: signs are changed where needed."""

    def __init__(self, file: ScoreFile, task: str, split: str) -> None:
        self.values = file.values(task, split)
        self.signs = {
            metric: -1.0 if higher_is_better(task, metric) else 1.0
            for metric in next(iter(self.values.values()), {})
        }

    def documents(self, masks: Sequence[str], metric: str) -> np.ndarray:
        """[masks, documents]: the losses on the documents that all masks have."""
        rows = [self.values[mask][metric] for mask in masks]
        n_docs = min(map(len, rows))
        return self.signs[metric] * np.array([row[:n_docs] for row in rows])


def pooled(tables: Sequence[Table], masks: Sequence[str], metric: str) -> np.ndarray:
    """[masks, documents]: the losses on the documents of all tasks that have the metric."""
    having = [table for table in tables if metric in table.signs]
    return np.hstack([table.documents(masks, metric) for table in having])


def rank(
    arguments: argparse.Namespace, file: ScoreFile, groups: Mapping[str, Sequence[str]]
) -> list[dict[str, Any]]:
    """Spearman's correlation of each metric on n search documents with the held-out truth."""
    guide = Table(file, arguments.task, "search")
    judges = [Table(file, task, "confirmation") for task in arguments.judges]
    found = []
    for group, masks in groups.items():
        scored = [m for m in masks if m in guide.values and all(m in j.values for j in judges)]
        if len(scored) < 10:
            continue
        truth = {metric: pooled(judges, scored, metric) for metric in TRUTHS}
        for metric in sorted(guide.signs):
            values = guide.documents(scored, metric)
            for n_docs in arguments.documents:
                if n_docs <= values.shape[1]:
                    row = {"group": group, "metric": metric, "n_docs": n_docs}
                    found.append(row | _correlations(values, truth, n_docs, arguments.draws))
        for metric, values in truth.items():
            row = {"group": group, "metric": f"held-out {metric}", "n_docs": values.shape[1]}
            found.append(row | {metric: _reliability(values, arguments.draws)})
    return found


def _correlations(
    values: np.ndarray, truth: Mapping[str, np.ndarray], n_docs: int, draws: int
) -> dict[str, float]:
    """The correlations, as means over draws of n documents; the documents' standard error; and the
    masks' spread."""
    rng = np.random.default_rng(0)
    if n_docs == values.shape[1]:
        draws = 1
    drawn = [values[:, rng.permutation(values.shape[1])[:n_docs]] for _ in range(draws)]
    row = {
        judge: float(np.mean([_spearman(part.mean(1), held.mean(1)) for part in drawn]))
        for judge, held in truth.items()
    }
    apart = values - values.mean(0)  # a part that all masks share is not noise
    error = apart.std(1, ddof=1).mean() / math.sqrt(n_docs)
    return row | {"stderr": float(error), "spread": float(values.mean(1).std(ddof=1))}


def _spearman(one: np.ndarray, two: np.ndarray) -> float:
    """Spearman's correlation; 0 if one of the two is the same for all masks."""
    if np.ptp(one) == 0 or np.ptp(two) == 0:
        return 0.0
    return float(stats.spearmanr(one, two).statistic)


def _reliability(values: np.ndarray, draws: int) -> float:
    """How reliable the means over these documents are.

    It is the correlation between random halves, scaled up to all documents (Spearman–Brown).
    """
    rng, half = np.random.default_rng(0), values.shape[1] // 2
    found = []
    for _ in range(draws):
        order = rng.permutation(values.shape[1])
        one, two = values[:, order[:half]].mean(1), values[:, order[half:]].mean(1)
        found.append(_spearman(one, two))
    r = float(np.mean(found))
    return 2 * r / (1 + r)


def run_searches(arguments: argparse.Namespace, file: ScoreFile, scorer: Scorer) -> None:
    """Run every selector with every metric on every number of documents."""
    kept: list[dict[str, Any]] = file.data.setdefault("searches", [])
    done = {(row["selector"], row["metric"], row["n_docs"], row["budget"]) for row in kept}
    for n_docs in arguments.documents:
        for metric in arguments.metrics:
            for name in arguments.selectors:
                if (name, metric, n_docs, arguments.budget) in done:
                    continue
                row = _search(arguments, file, scorer, name, metric, n_docs)
                kept.append(row)
                print(json.dumps(row), file=sys.stderr, flush=True)
    chosen = sorted({row["mask"] for row in kept if row["budget"] == arguments.budget})
    for task, limit in zip(arguments.judges, arguments.judge_documents, strict=True):
        score_masks(scorer, file, chosen, task, Documents("confirmation", limit))


def _search(
    arguments: argparse.Namespace,
    file: ScoreFile,
    scorer: Scorer,
    name: str,
    metric: str,
    n_docs: int,
) -> dict[str, Any]:
    sign = -1.0 if higher_is_better(arguments.task, metric) else 1.0
    documents = Documents("search", n_docs)
    losses: dict[LayerMask, float] = {}
    seconds = 0.0

    def loss(mask: LayerMask) -> float:
        nonlocal seconds
        key = str(mask)
        if file.missing([key], arguments.task, "search", n_docs):
            score = scorer.score(mask.kv_heads(scorer.shape), TaskSpec(arguments.task), documents)
            file.keep(arguments.task, "search", {key: score})
        values = file.values(arguments.task, "search")[key][metric]
        seconds += file.data["seconds"][f"{arguments.task}/search"][key] * n_docs / len(values)
        losses[mask] = sign * float(np.mean(values[:n_docs]))
        return losses[mask]

    n_layers = scorer.shape.n_layers
    selector, parameters = SELECTORS[name]
    chooser = selector_of(selector, SearchSpace(n_layers, arguments.budget), 0, **parameters)
    search(chooser, Truth(chooser.space, loss, 0.0, 1.0), arguments.tpe_trials)
    at_budget = {m: v for m, v in losses.items() if m.n_converted == arguments.budget}
    best = min(at_budget, key=at_budget.__getitem__)
    return {
        "selector": name,
        "metric": metric,
        "n_docs": n_docs,
        "budget": arguments.budget,
        "mask": str(best),
        "layers": best.layers,
        "value": at_budget[best],
        "n_masks": len(losses),
        "seconds": seconds,
    }


def regrets(
    arguments: argparse.Namespace, file: ScoreFile, groups: Mapping[str, Sequence[str]]
) -> list[dict[str, Any]]:
    """Regret, on held-out documents, of the masks that the searches chose.

    It is 0 for the best known mask, and 1 for the median of random masks.
    """
    judges = [Table(file, task, "confirmation") for task in arguments.judges]
    at_random = [
        mask
        for mask in groups[f"random {arguments.budget}"]
        if all(mask in judge.values for judge in judges)
    ]
    rows = [row for row in file.data.get("searches", []) if row["budget"] == arguments.budget]
    found = [dict(row) for row in rows]
    for metric in TRUTHS:
        losses = {
            mask: pooled(judges, [mask], metric)[0]
            for mask in {row["mask"] for row in rows} | set(at_random)
        }
        longest = max(map(len, losses.values()))
        whole = {mask: each for mask, each in losses.items() if len(each) == longest}
        best = min(whole, key=lambda mask: whole[mask].mean())
        typical = np.median([losses[mask].mean() for mask in at_random])
        for row in found:  # paired with the best mask, on the documents that the mask has
            mine = losses[row["mask"]]
            apart = mine - whole[best][: len(mine)]
            scale = float(typical - whole[best].mean())
            row["judged_on"] = len(mine)
            row[f"regret {metric}"] = float(apart.mean()) / scale
            row[f"stderr {metric}"] = float(apart.std(ddof=1)) / math.sqrt(len(mine)) / scale
    return found


def price(arguments: argparse.Namespace, scorer: SharedPrefixScorer) -> dict[str, float]:
    """Time of a whole search, measured in stock HFLM evaluations of 100 documents, in one run."""
    stock = ResidentLM(scorer.convertible.model, scorer.lm.tokenizer, 16)
    task = TaskSpec(arguments.task)
    instances = scorer.library.task(task, Documents("search")).prepare(Documents("search", 100))
    n_docs = arguments.documents[0]
    masks: list[float] = []

    def loss(mask: LayerMask) -> float:
        documents = Documents("search", n_docs)
        score = scorer.score(mask.kv_heads(scorer.shape), task, documents)
        masks.append(score.seconds)
        return score.values["kl"]

    theirs = [_seconds(lambda: stock.loglikelihood(instances.instances, disable_tqdm=True))]
    n_layers = scorer.shape.n_layers
    selector, parameters = SELECTORS["gp"]
    chooser = selector_of(selector, SearchSpace(n_layers, arguments.budget), 0, **parameters)
    ours = _seconds(lambda: search(chooser, Truth(chooser.space, loss, 0.0, 1.0), 0))
    theirs.append(_seconds(lambda: stock.loglikelihood(instances.instances, disable_tqdm=True)))
    return {
        "search_seconds": ours,
        "n_masks": len(masks),
        "n_docs": n_docs,
        "hflm_seconds": float(np.mean(theirs)),
        "price_in_evaluations": ours / float(np.mean(theirs)),
    }


def _seconds(work: Any) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _show(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns))
    for row in rows:
        cells = (row.get(column) for column in columns)
        print("| " + " | ".join("" if c is None else _cell(c) for c in cells) + " |")


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def main() -> None:
    """Parse the command line, measure, print Markdown tables or JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("rank", "search", "regret", "price"))
    add_model_arguments(parser)
    parser.add_argument("--more", type=Path, nargs="+", default=[], help="files to read as well")
    parser.add_argument("--task", default="hellaswag", help="that guides the search")
    parser.add_argument("--judges", nargs="+", default=["hellaswag"], help="held-out tasks")
    parser.add_argument("--judge-documents", type=int, nargs="+", default=[64])
    parser.add_argument("--documents", type=int, nargs="+", default=[8, 16, 32, 64, 128])
    parser.add_argument("--metrics", nargs="+", default=["kl", "answer_kl", "bits_per_byte"])
    parser.add_argument("--selectors", nargs="+", default=list(SELECTORS), choices=SELECTORS)
    parser.add_argument("--budget", type=int, default=10)
    parser.add_argument("--tpe-trials", type=int, default=30)
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("-f", "--format", choices=("table", "json"), default="table")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    random.seed(0)
    file = ScoreFile(arguments.file)
    for other in arguments.more:
        file.add(ScoreFile(other))
    if arguments.part in ("search", "price"):
        scorer = scorer_for(arguments)
        if arguments.part == "price":
            assert isinstance(scorer, SharedPrefixScorer)
            print(json.dumps(price(arguments, scorer), indent=1))
            return
        try:
            run_searches(arguments, file, scorer)
        finally:
            file.write()
        return
    n_layers = len(next(iter(file.values(arguments.task, "search"))))
    groups = population(n_layers, arguments.sizes, arguments.random)
    if arguments.part == "rank":
        rows = rank(arguments, file, groups)
        columns = ["group", "metric", "n_docs", *TRUTHS, "stderr", "spread"]
    else:
        rows = regrets(arguments, file, groups)
        columns = ["selector", "metric", "n_docs", "n_masks", "judged_on", "layers"]
        columns += [f"{what} {metric}" for metric in TRUTHS for what in ("regret", "stderr")]
    if arguments.format == "json":
        print(json.dumps(rows, indent=1))
    else:
        _show(rows, columns)


if __name__ == "__main__":
    main()
