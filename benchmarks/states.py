"""How many layers kept states save, by how many boundaries fit: a simulation, no model is run.

    python benchmarks/states.py

Masks are those that the selectors propose on made-up losses (additive and pairwise, 30 layers, 5 to
convert); the store is the product's. Figures are layers run without any state over layers run.
"""

from dataclasses import dataclass

import optuna

from mqasearch.evaluation.fake import FakeScorer
from mqasearch.evaluation.states import StateStore
from mqasearch.mask import LayerMask
from mqasearch.samplers import SELECTORS, param_name, sampler_of

N_LAYERS, N_CONVERTED = 30, 5
N_TRIALS = {"sensitivity": N_LAYERS + 1, "greedy": 80, "tpe": 40}
BOUNDARIES = (20, 31, 53, 64, 80, 110, 10**6)


@dataclass(frozen=True)
class OneBatch:
    """As much of a plan as the store looks at; a boundary takes one byte."""

    n_tokens: int = 1
    batches: tuple[()] = ()


def saved(selector: str, n_boundaries: int) -> float:
    """Layers without states over layers with ``n_boundaries`` of them, over a whole run."""
    scorer, plan = FakeScorer(N_LAYERS), OneBatch()
    store = StateStore(n_boundaries, N_LAYERS)
    sampler = sampler_of(selector, N_LAYERS, N_CONVERTED, 0)
    sampler.prefer = lambda masks: max(
        masks, key=lambda mask: store.deepest(plan, mask.kv_heads(scorer.shape))
    )
    layers: list[int] = []
    known: dict[LayerMask, float] = {}

    def objective(trial: optuna.Trial) -> float:
        names = [param_name(layer) for layer in range(N_LAYERS)]
        mask = LayerMask(tuple(bool(trial.suggest_categorical(n, (False, True))) for n in names))
        if mask not in known:
            kv_heads = mask.kv_heads(scorer.shape)
            start = store.deepest(plan, kv_heads)
            store.promise(plan, kv_heads, start, 1)
            layers.append(N_LAYERS - start)
            known[mask] = scorer.loss(kv_heads)
        if mask.n_converted != N_CONVERTED:
            trial.report(known[mask], mask.n_converted)
            raise optuna.TrialPruned
        return known[mask]

    study = optuna.create_study(sampler=sampler)
    study.enqueue_trial({param_name(layer): False for layer in range(N_LAYERS)})
    for _ in range(N_TRIALS[selector]):
        study.optimize(objective, n_trials=1)
        ended = study.trials[-1].state == optuna.trial.TrialState.COMPLETE
        if SELECTORS[selector].ends and ended:
            break
    return N_LAYERS * len(layers) / sum(layers)


def main() -> None:
    """Print the table."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    print(f"| boundaries | {' | '.join(N_TRIALS)} |")
    print("|---|" + "---|" * len(N_TRIALS))
    for n_boundaries in BOUNDARIES:
        cells = " | ".join(f"{saved(selector, n_boundaries):.2f}" for selector in N_TRIALS)
        print(f"| {n_boundaries if n_boundaries < 10**6 else 'all'} | {cells} |")


if __name__ == "__main__":
    main()
