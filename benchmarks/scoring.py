"""What a mask costs: stock lm-eval against the scorer that shares prefixes, in one process.

    python benchmarks/scoring.py                       all of it, about 15 minutes on two free cores
    python benchmarks/scoring.py --documents 25 --tpe-trials 20 -f json

(a) is the seed's way: convert, save, load, ``simple_evaluate``. The latter makes its
list of tasks at every call, which takes six seconds; a second ratio leaves these out. (b) is a
resident model with stock HFLM and ``evaluate``. Everything else is ours. (b) is measured repeatedly
between measurements of ours, so that a busy machine slows both. *Layer-tokens* are the tokens run
(with padding) times the layers that they are run through; they do not depend on the machine. See
scoring.md for figures.
"""

import argparse
import itertools
import json
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import lm_eval.models.huggingface
import numpy as np
import torch
from lm_eval.evaluator import evaluate, simple_evaluate
from lm_eval.tasks import TaskManager
from one_worker import trials_of
from torch.profiler import ProfilerActivity, profile

from mqasearch.conversion import ConvertibleModel
from mqasearch.families import family_of
from mqasearch.mask import KVHeads, LayerMask
from mqasearch.merging import merge_of
from mqasearch.models import LoadedModel, load_model
from mqasearch.score import Documents, TaskSpec
from mqasearch.scoring import SharedPrefixScorer
from mqasearch.search_space import SearchSpace
from mqasearch.selectors import SELECTORS, selector_of
from mqasearch.tasks import PreparedTask, TaskLibrary

MATRIX_PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")
ATTENTION = "aten::_scaled_dot_product"


@dataclass
class Cost:
    """The cost of scoring some masks, with one entry per mask.

    Attributes:
        seconds: wall-clock seconds.
        cpu_seconds: CPU seconds of all threads of this process, without other processes.
        layer_tokens: tokens run times layers.
    """

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    layer_tokens: list[float] = field(default_factory=list)

    def ratios(self, ours: "Cost") -> dict[str, float]:
        """This cost per mask divided by ours."""
        return {
            "layer_tokens_ratio": _mean(self.layer_tokens) / _mean(ours.layer_tokens),
            "seconds_ratio": _mean(self.seconds) / _mean(ours.seconds),
            "cpu_seconds_ratio": _mean(self.cpu_seconds) / _mean(ours.cpu_seconds),
            "seconds": _mean(ours.seconds),
            "baseline_seconds": _mean(self.seconds),
            "n_masks": len(ours.seconds),
        }


class Bench:
    """One model, one task and some documents; counts the layer-tokens of all scorers."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.loaded: LoadedModel = load_model(
            arguments.model, device=arguments.device, dtype=arguments.dtype
        )
        model = self.loaded.model
        family = family_of(model.config.model_type)
        self.convertible = ConvertibleModel(model, family, merge_of(arguments.merge))
        self.convertible.prepare()
        self.library = TaskLibrary()
        self.task = TaskSpec(arguments.task)
        self.documents = Documents("search", arguments.documents)
        self.batch_size = arguments.batch_size
        self.n_layers = self.convertible.shape.n_layers
        self.layer_tokens = 0
        for block in family.blocks(model):
            family.attention(block).register_forward_pre_hook(self._count, with_kwargs=True)
        self.stock = lm_eval.models.huggingface.HFLM(
            pretrained=model, tokenizer=self.loaded.tokenizer, batch_size=self.batch_size
        )
        self.rng = random.Random(0)

    def _count(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        self.layer_tokens += hidden.shape[0] * hidden.shape[1]

    def scorer(
        self, kind: type[SharedPrefixScorer] = SharedPrefixScorer, **options: Any
    ) -> SharedPrefixScorer:
        """A new scorer of ours, with nothing kept."""
        loaded = self.loaded
        return kind(
            self.convertible,
            loaded.tokenizer,
            loaded.fingerprint,
            loaded.dtype,
            library=self.library,
            **options,
        )

    def heads(self, layers: Sequence[int]) -> KVHeads:
        return LayerMask.of(layers, self.n_layers).kv_heads(self.convertible.shape)

    def random_mask(self, n_converted: int = 5) -> KVHeads:
        return self.heads(self.rng.sample(range(self.n_layers), n_converted))

    def prepared(self, documents: Documents | None = None) -> PreparedTask:
        documents = documents or self.documents
        return self.library.task(self.task, documents).prepare(documents)

    @contextmanager
    def measured(self, cost: Cost, n_masks: int = 1) -> Iterator[None]:
        """Add the cost of the ``with`` block to ``cost``, divided equally among the masks."""
        tokens, cpu, clock = self.layer_tokens, time.process_time(), time.perf_counter()
        yield
        cost.seconds += [(time.perf_counter() - clock) / n_masks] * n_masks
        cost.cpu_seconds += [(time.process_time() - cpu) / n_masks] * n_masks
        cost.layer_tokens += [(self.layer_tokens - tokens) / n_masks] * n_masks

    def baseline(self, cost: Cost, documents: Documents | None = None) -> None:
        """Measure (b) on a random mask."""
        rows = [document.instances[0].doc_id for document in self.prepared(documents).documents]
        (task,) = self.library.task(self.task, self.documents).tasks
        kv_heads = self.random_mask()
        with self.convertible.converted(kv_heads), self.measured(cost):
            evaluate(
                self.stock,
                {"tasks": {self.task.name: task}},
                samples={self.task.name: sorted(rows)},
            )

    def seed_pipeline(self, cost: Cost, listing: Cost) -> None:
        """Measure (a) on a random mask; the cost of lm-eval's list of tasks goes to ``listing``."""
        rows = [document.instances[0].doc_id for document in self.prepared().documents]
        (task,) = self.library.task(self.task, self.documents).tasks
        with tempfile.TemporaryDirectory() as folder, self.measured(cost):
            with self.convertible.converted(self.random_mask()) as model:
                model.save_pretrained(folder)
                self.loaded.tokenizer.save_pretrained(folder)
            simple_evaluate(
                model="hf",
                model_args={"pretrained": folder, "dtype": str(self.loaded.dtype).split(".")[1]},
                tasks=[task],
                samples={self.task.name: sorted(rows)},
                batch_size=self.batch_size,
                device=str(self.loaded.device),
                task_manager=TaskManager(include_defaults=False),
            )
        with self.measured(listing):
            TaskManager()  # simple_evaluate does this if it is given the name of a task


def cold(bench: Bench, n_masks: int) -> dict[str, float]:
    """Measure random masks with nothing kept between them, and (b)."""
    ours, theirs = Cost(), Cost()
    scorer = bench.scorer(state_bytes=0)
    scorer.score(bench.random_mask(), bench.task, bench.documents)
    for _ in range(n_masks):
        with bench.measured(ours):
            scorer.score(bench.random_mask(), bench.task, bench.documents)
        bench.baseline(theirs)
    return theirs.ratios(ours)


def sensitivity(bench: Bench, every: int) -> dict[str, Any]:
    """Measure the original and each layer alone, from the last to the first."""
    masks = [bench.heads([])]
    masks += [bench.heads([layer]) for layer in reversed(range(bench.n_layers))]
    ours, theirs = Cost(), Cost()
    scorer = bench.scorer()
    for number, kv_heads in enumerate(masks):
        with bench.measured(ours):
            scorer.score(kv_heads, bench.task, bench.documents)
        if number % every == 0:
            bench.baseline(theirs)
    tokens = ours.layer_tokens[0] / bench.n_layers
    layers = np.array(ours.layer_tokens[1:]) / tokens
    slope, start = np.polyfit(layers, ours.seconds[1:], 1)
    return theirs.ratios(ours) | {"seconds_per_layer": slope, "seconds_without_layers": start}


def search(
    bench: Bench, selector: str, n_converted: int, n_trials: int, every: int
) -> dict[str, Any]:
    """Measure a real run of a selector on the real losses."""
    ours, theirs = Cost(), Cost()
    scorer = bench.scorer()

    def loss(mask: LayerMask) -> float:
        kv_heads = mask.kv_heads(bench.convertible.shape)
        with bench.measured(ours):
            score = scorer.score(kv_heads, bench.task, bench.documents)
        if len(ours.seconds) % every == 1:
            bench.baseline(theirs)
        return score.values[bench.task.metric]

    trials = trials_of(
        selector_of(selector, SearchSpace(bench.n_layers, n_converted), 0),
        loss,
        enqueued=[LayerMask.empty(bench.n_layers)],
    )
    for trial in itertools.islice(trials, n_trials):
        if SELECTORS[selector].ends and trial.state == "complete":
            break
    growth = np.cumsum(ours.seconds)[9::10]
    return theirs.ratios(ours) | {
        "seconds_after_masks": dict(zip(range(10, 999, 10), growth, strict=False))
    }


def pairs(bench: Bench, n_documents: int) -> dict[str, float]:
    """Measure all pairs of layers at once, and (b) on the same documents."""
    documents = Documents("search", n_documents)
    chosen = [*itertools.combinations(range(bench.n_layers), 2)]
    masks = [bench.heads(layers) for layers in chosen]
    ours, theirs = Cost(), Cost()
    scorer = bench.scorer()
    for _ in range(3):
        bench.baseline(theirs, documents)
    with bench.measured(ours, len(masks)):
        scorer.score_many(masks, bench.task, documents)
    for _ in range(3):
        bench.baseline(theirs, documents)
    return theirs.ratios(ours) | {"n_documents": n_documents}


def seed_pipeline(bench: Bench, n_masks: int) -> dict[str, float]:
    """Compare (a) with a cold mask of ours."""
    ours, theirs, listing = Cost(), Cost(), Cost()
    scorer = bench.scorer(state_bytes=0)
    scorer.score(bench.random_mask(), bench.task, bench.documents)
    for _ in range(n_masks):
        bench.seed_pipeline(theirs, listing)
        with bench.measured(ours):
            scorer.score(bench.random_mask(), bench.task, bench.documents)
    found = theirs.ratios(ours)
    whole = found["baseline_seconds"] + _mean(listing.seconds)
    return found | {
        "seconds_ratio": whole / found["seconds"],
        "seconds_ratio_without_list": found["seconds_ratio"],
        "baseline_seconds": whole,
        "list_seconds": _mean(listing.seconds),
    }


def growth(bench: Bench) -> dict[int, float]:
    """Number of documents → seconds of a cold mask."""
    found = {}
    scorer = bench.scorer(state_bytes=0)
    for share in (4, 2, 1):
        limit = max(1, (bench.documents.limit or 0) // share)
        documents = Documents("search", limit)
        scorer.score(bench.random_mask(), bench.task, documents)
        cost = Cost()
        for _ in range(3):
            with bench.measured(cost):
                scorer.score(bench.random_mask(), bench.task, documents)
        found[limit] = statistics.median(cost.seconds)
    return found


def matrix_products(bench: Bench) -> dict[str, float]:
    """Share of a cold mask's time in matrix products, and their rate against the machine's own.

    Attention counts as matrix products: its kernel is two of them with a softmax between them.
    """
    scorer = bench.scorer(state_bytes=0)
    scorer.score(bench.random_mask(), bench.task, bench.documents)
    with profile(activities=[ProfilerActivity.CPU], with_flops=True, record_shapes=True) as seen:
        scorer.score(bench.random_mask(), bench.task, bench.documents)
    events = seen.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    products = [event for event in events if event.key in MATRIX_PRODUCTS]
    attention = sum(e.self_cpu_time_total for e in events if e.key.startswith(ATTENTION))
    seconds = sum(event.self_cpu_time_total for event in products) / 1e6
    rate = sum(event.flops for event in products) / seconds / 1e9
    config = bench.loaded.model.config.get_text_config()
    own_shape = (4096, config.hidden_size, config.intermediate_size)
    square, own = (_matmul_rate(bench.loaded.dtype, *s) for s in ((2048,) * 3, own_shape))
    return {
        "matmul_share": (seconds * 1e6 + attention) / total,
        "matmul_share_without_attention": seconds * 1e6 / total,
        "matmul_gflops": rate,
        "machine_gflops": square,
        "matmul_efficiency": rate / square,
        "matmul_efficiency_at_the_models_shape": rate / own,
    }


def _matmul_rate(dtype: torch.dtype, rows: int, inner: int, columns: int) -> float:
    left, right = torch.randn(rows, inner, dtype=dtype), torch.randn(columns, inner, dtype=dtype)
    best = float("inf")
    for _ in range(10):
        started = time.perf_counter()
        torch.nn.functional.linear(left, right)
        best = min(best, time.perf_counter() - started)
    return 2 * rows * inner * columns / best / 1e9


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run every part in turn; the results so far are written to stderr."""
    bench = Bench(arguments)
    parts: dict[str, Callable[[], dict[Any, Any]]] = {
        "cold": lambda: cold(bench, arguments.cold),
        "sensitivity": lambda: sensitivity(bench, arguments.every),
        "greedy": lambda: search(bench, "greedy", 5, 200, arguments.every),
        "tpe": lambda: search(bench, "tpe", 5, arguments.tpe_trials, arguments.every),
        "pairs": lambda: pairs(bench, arguments.pair_documents),
        "seed_pipeline": lambda: seed_pipeline(bench, 3),
        "seconds_by_documents": lambda: growth(bench),
        "matrix": lambda: matrix_products(bench),
    }
    found: dict[str, Any] = {}
    for name, part in parts.items():
        if arguments.only and name not in arguments.only:
            continue
        result = part()
        found |= result if name == "matrix" else {name: result}
        print(name, json.dumps(result), file=sys.stderr, flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found |= {"peak_memory_gib": peak / 2**20, "threads": torch.get_num_threads()}
    if torch.cuda.is_available() and bench.loaded.device.type == "cuda":
        found |= {
            "card": torch.cuda.get_device_name(bench.loaded.device),
            "peak_card_memory_gib": torch.cuda.max_memory_allocated() / 2**30,
        }
    return found


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--merge", default="mean")
    parser.add_argument("--task", default="hellaswag")
    parser.add_argument("--documents", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=16, help="rows at once in (a) and (b)")
    parser.add_argument("--cold", type=int, default=5, help="cold masks")
    parser.add_argument("--every", type=int, default=6, help="masks of ours between two of (b)")
    parser.add_argument("--tpe-trials", type=int, default=40)
    parser.add_argument("--pair-documents", type=int, default=10)
    parser.add_argument("--only", nargs="*", default=[], help="parts to run")
    parser.add_argument("-f", "--format", choices=("table", "json"), default="table")
    arguments = parser.parse_args()
    found = run(arguments)
    if arguments.format == "json":
        print(json.dumps(found, indent=2))
        return
    for name, value in found.items():
        figures = value if isinstance(value, dict) else {"": value}
        print(
            f"{name:42}",
            *(
                f"{key} {figure:.3g}"
                for key, figure in figures.items()
                if not isinstance(figure, dict)
            ),
            sep="  ",
        )


if __name__ == "__main__":
    main()
