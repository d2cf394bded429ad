"""Studies as workers leave them, made without any worker: masks scored by a made-up truth."""

from collections.abc import Iterable
from datetime import datetime, timedelta

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from mqasearch.mask import LayerMask

N_LAYERS = 10
SPEC = {
    "name": "demo",
    "budget": [{"n_layers": 3}],
    "tasks": [{"name": "hellaswag", "metric": "bits_per_byte"}],
}
HARM = (0.5, 0.9, 0.2, 0.1, 0.15, 0.12, 0.3, 0.05, 0.08, 0.04)
ORIGINAL = 1.0


def value_of(mask: LayerMask) -> float:
    """The made-up truth: harms add up, and converted neighbours help each other a little."""
    neighbours = sum(layer + 1 in mask.layers for layer in mask.layers)
    return ORIGINAL + sum(HARM[layer] for layer in mask.layers) - 0.02 * neighbours


N_DOCS = 16
STDERR, DELTA_STDERR = 0.03, 0.004
"""Standard errors of every mask; the original has none for its difference to itself."""


def make_trial(
    mask: LayerMask,
    n_converted: int,
    place: int = 0,
    *,
    sign: int = 1,
    state: TrialState | None = None,
    value: float | None = None,
    given_up: int | None = None,
) -> FrozenTrial:
    """A trial as the objective leaves it: complete at the budget, pruned below it or given up."""
    value = sign * value_of(mask) if value is None else value
    if state is None:
        at_budget = mask.n_converted == n_converted and given_up is None
        state = TrialState.COMPLETE if at_budget else TrialState.PRUNED
    ended = state.is_finished()
    trial = create_trial(
        state=state,
        value=value if state == TrialState.COMPLETE else None,
        params={f"layer_{layer:02}": flag for layer, flag in enumerate(mask)},
        distributions={
            f"layer_{layer:02}": CategoricalDistribution((False, True))
            for layer in range(len(mask))
        },
        intermediate_values={mask.n_converted: value} if state == TrialState.PRUNED else {},
        user_attrs={"mqasearch:mask": str(mask)}
        | (
            {
                "mqasearch:facts": {
                    "mask": str(mask),
                    "n_converted": mask.n_converted,
                    "kv_bytes_per_token": 4096 * len(mask) - 2048 * mask.n_converted,
                    "value": value,
                    "delta": value - sign * ORIGINAL,
                    "seconds": 1.5,
                    "reused": False,
                    "scores": {"hellaswag": {"acc": 0.4, "bits_per_byte": value}},
                    "given_up": given_up,
                    "stderr": STDERR,
                    "delta_stderr": DELTA_STDERR if mask.layers else 0.0,
                    "n_docs": {"hellaswag": given_up or N_DOCS},
                }
            }
            if state in (TrialState.COMPLETE, TrialState.PRUNED)
            else {}
        ),
    )
    trial.datetime_start = datetime(2026, 1, 1) + timedelta(seconds=2 * place)
    trial.datetime_complete = trial.datetime_start + timedelta(seconds=1) if ended else None
    return trial


def add_study(
    storage: BaseStorage,
    selector: str,
    trials: Iterable[FrozenTrial],
    *,
    comparison: str = "demo",
    n_converted: int = 3,
    n_layers: int = N_LAYERS,
    direction: str = "minimize",
    spec: dict[str, object] = SPEC,
) -> optuna.Study:
    """A study with its facts and trials."""
    study = optuna.create_study(
        storage=storage, study_name=f"{comparison}.{selector}", direction=direction
    )
    study.set_user_attr(
        "mqasearch:study",
        {
            "study": "demo",
            "comparison": comparison,
            "selector": selector,
            "n_converted": n_converted,
            "n_layers": n_layers,
            "shape": {},
            "n_trials": None,
            "direction": direction,
            "spec": spec,
            "versions": {},
        },
    )
    for trial in trials:
        study.add_trial(trial)
    return study


def probes(n_layers: int = N_LAYERS) -> list[LayerMask]:
    """The original and every layer alone."""
    return [LayerMask.empty(n_layers), *(LayerMask.of([i], n_layers) for i in range(n_layers))]


def masks_of(*rows: Iterable[int]) -> list[LayerMask]:
    return [LayerMask.of(row, N_LAYERS) for row in rows]


def fill(storage: BaseStorage) -> None:
    """A comparison of three selectors, one of them at work, and a study that is not ours."""
    sensitivity = [*probes(), *masks_of([9, 7], [9, 7, 8])]
    add_study(storage, "sensitivity", [make_trial(m, 3, i) for i, m in enumerate(sensitivity)])
    alternating = [LayerMask.empty(N_LAYERS), *masks_of([9, 7, 5])]
    add_study(storage, "alternating", [make_trial(m, 3, i) for i, m in enumerate(alternating)])
    tried = masks_of([0, 1, 2], [9, 4, 2], [9, 8, 7], [3, 5, 7], [6, 7, 9], [3, 4, 5])
    tpe = [make_trial(m, 3, i) for i, m in enumerate([LayerMask.empty(N_LAYERS), *tried])]
    running = make_trial(masks_of([3, 8, 9])[0], 3, 7, state=TrialState.RUNNING)
    broken = make_trial(masks_of([0, 1, 3])[0], 3, 8, state=TrialState.FAIL)
    broken.set_user_attr("mqasearch:invalid", "loss is NaN")
    study = add_study(storage, "tpe", [*tpe, running, broken])
    study.enqueue_trial({"layer_00": True})
    optuna.create_study(storage=storage, study_name="someone else's")
