"""What `kl`, `answer_kl` and `flips` add to the cost of a mask's score, in one process.

    python benchmarks/comparison.py --documents 32

The same masks are scored in three ways: without comparison with the original, with a comparison of
the answers alone, and with all comparisons. The three are interleaved, so that a busy machine slows
all of them. "Cold": nothing is kept from one mask to the next. "Warm": each layer alone, one after
the other, with states kept; there a mask is cheap, so the comparison adds most.
"""

import argparse
import json
import statistics

from scoring import Bench, Cost

from mqasearch.mask import KVHeads
from mqasearch.scoring import SharedPrefixScorer
from mqasearch.tasks import Comparison, Passage, PreparedDocument, PreparedTask, Responses


class WithoutComparison(SharedPrefixScorer):
    """Scores answers only, without any comparison with the original."""

    def passages(self, document: PreparedDocument) -> tuple[Passage, ...]:
        return ()

    def compared(
        self, kv_heads: KVHeads, prepared: PreparedTask
    ) -> tuple[Responses, list[Comparison | None]]:
        return self.responses(kv_heads, prepared), []


class AnswersCompared(SharedPrefixScorer):
    """Compares answers only, for ``answer_kl`` and ``flips``."""

    def passages(self, document: PreparedDocument) -> tuple[Passage, ...]:
        return tuple(Passage(passage.pair, False) for passage in super().passages(document))


KINDS = {"none": WithoutComparison, "answer_kl": AnswersCompared, "kl": SharedPrefixScorer}


def measure(bench: Bench, masks: list[KVHeads], state_bytes: int | None) -> dict[str, float]:
    """Median over masks of each kind's seconds, divided by the seconds without comparison."""
    scorers = {name: bench.scorer(kind, state_bytes=state_bytes) for name, kind in KINDS.items()}
    costs = {name: Cost() for name in KINDS}
    for scorer in scorers.values():
        scorer.score(scorer.shape.original, bench.task, bench.documents)
    for number, kv_heads in enumerate(masks):
        names = list(KINDS)
        for name in names[number % 3 :] + names[: number % 3]:
            with bench.measured(costs[name]):
                scorers[name].score(kv_heads, bench.task, bench.documents)
    found = {"seconds": statistics.median(costs["none"].seconds), "n_masks": len(masks)}
    for name in ("answer_kl", "kl"):
        for unit in ("seconds", "cpu_seconds"):
            pairs = zip(getattr(costs[name], unit), getattr(costs["none"], unit), strict=True)
            found[f"{name}_{unit}_ratio"] = statistics.median(one / two for one, two in pairs)
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
    parser.add_argument("--documents", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--masks", type=int, default=6)
    arguments = parser.parse_args()
    bench = Bench(arguments)
    cold = [bench.random_mask(10) for _ in range(arguments.masks)]
    warm = [bench.heads([layer]) for layer in reversed(range(bench.n_layers))]
    found = {"cold": measure(bench, cold, 0), "warm": measure(bench, warm, None)}
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
