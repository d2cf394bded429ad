"""Trials of an Optuna study as an objective makes and ends them."""

import optuna
from optuna.trial import TrialState

from mqasearch.mask import LayerMask
from mqasearch.selectors import INVALID_KEY, param_name


def suggest(trial: optuna.Trial, n_layers: int) -> LayerMask:
    names = map(param_name, range(n_layers))
    return LayerMask(tuple(trial.suggest_categorical(name, (False, True)) for name in names))


def finish(study: optuna.Study, trial: optuna.Trial, at_budget: bool, value: float) -> None:
    """End a trial as the objective does: COMPLETE at the budget, PRUNED below it."""
    if at_budget:
        study.tell(trial, value)
    else:
        trial.report(value, step=0)
        study.tell(trial, state=TrialState.PRUNED)


def fail(study: optuna.Study, trial: optuna.Trial, invalid: bool = False) -> None:
    """End a trial as a killed worker's ends, or as one whose score is not a number."""
    if invalid:
        trial.set_user_attr(INVALID_KEY, "not a number")
    study.tell(trial, state=TrialState.FAIL)
