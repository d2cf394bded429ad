"""How many layers kept states save, by how many boundaries fit: a simulation, no model is run.

    python benchmarks/states.py

The masks are those that the selectors propose on made-up losses (additive and pairwise, 30 layers,
5 to convert). The store is the product's. A figure is the number of layers run without any states,
divided by the number of layers run with them.
"""

import itertools
from dataclasses import dataclass

from one_worker import trials_of

from mqasearch.forward import StateStore
from mqasearch.mask import LayerMask
from mqasearch.scoring import FakeScorer
from mqasearch.search_space import SearchSpace
from mqasearch.selectors import SELECTORS, selector_of

N_LAYERS, N_CONVERTED = 30, 5
N_TRIALS = {"sensitivity": N_LAYERS + 1, "greedy": 80, "tpe": 40}
BOUNDARIES = (20, 31, 53, 64, 80, 110, 10**6)


@dataclass(frozen=True)
class OneBatch:
    """The part of a plan that the store reads; a boundary takes one byte."""

    n_tokens: int = 1
    batches: tuple[()] = ()


def saved(selector: str, n_boundaries: int) -> float:
    """Layers run without states, divided by layers run if ``n_boundaries`` fit, in a whole run."""
    scorer, plan = FakeScorer(N_LAYERS), OneBatch()
    store = StateStore(n_boundaries, N_LAYERS)
    layers: list[int] = []

    def deepest(mask: LayerMask) -> int:
        return store.deepest(plan, mask.kv_heads(scorer.shape))

    def loss(mask: LayerMask) -> float:
        kv_heads, start = mask.kv_heads(scorer.shape), deepest(mask)
        store.promise(plan, kv_heads, start, 1)
        layers.append(N_LAYERS - start)
        return scorer.loss(kv_heads)

    trials = trials_of(
        selector_of(selector, SearchSpace(N_LAYERS, N_CONVERTED), 0),
        loss,
        enqueued=[LayerMask.empty(N_LAYERS)],
        pick=lambda masks: max(masks, key=deepest),
    )
    for trial in itertools.islice(trials, N_TRIALS[selector]):
        if SELECTORS[selector].ends and trial.state == "complete":
            break
    return N_LAYERS * len(layers) / sum(layers)


def main() -> None:
    """Print the table."""
    print(f"| boundaries | {' | '.join(N_TRIALS)} |")
    print("|---|" + "---|" * len(N_TRIALS))
    for n_boundaries in BOUNDARIES:
        cells = " | ".join(f"{saved(selector, n_boundaries):.2f}" for selector in N_TRIALS)
        print(f"| {n_boundaries if n_boundaries < 10**6 else 'all'} | {cells} |")


if __name__ == "__main__":
    main()
