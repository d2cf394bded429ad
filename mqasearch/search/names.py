"""What a study file may name, gathered from the floors that know it."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from mqasearch.conversion import MERGES, merge_of
from mqasearch.evaluation.metrics import check_metric
from mqasearch.samplers import SELECTORS, check_parameters
from mqasearch.search.scoring import check_model_name
from mqasearch.spec import KnownNames


def known_names() -> KnownNames:
    """Checks of models, tasks with metrics, selectors and merges with parameters."""
    return KnownNames(
        model=check_model_name,
        task=check_metric,
        selectors={name: partial(check_parameters, name) for name in SELECTORS},
        merges={name: _merge_check(name) for name in MERGES},
    )


def _merge_check(name: str) -> Callable[[Mapping[str, Any]], None]:
    def check(parameters: Mapping[str, Any]) -> None:
        merge_of(name, **parameters)

    return check
