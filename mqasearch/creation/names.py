"""What a study file may name, gathered from the floors that know it."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from mqasearch.conversion import MERGES, merge_of
from mqasearch.errors import UserError
from mqasearch.score import ZERO_ONE
from mqasearch.scoring import check_model_name
from mqasearch.selectors import RECOMMENDED, SELECTORS, check_parameters
from mqasearch.spec import KnownNames
from mqasearch.statistics import least_documents
from mqasearch.tasks import higher_is_better


def known_names() -> KnownNames:
    """Checks of models, tasks with metrics, selectors and merges with parameters; what is
    recommended."""
    return KnownNames(
        model=check_model_name,
        task=higher_is_better,
        objective=maximizes,
        selectors={name: partial(check_parameters, name) for name in SELECTORS},
        merges={name: _merge_check(name) for name in MERGES},
        least_documents=_least_documents,
        recommended=RECOMMENDED,
    )


def maximizes(tasks: Mapping[str, str]) -> bool:
    """Whether a larger objective is better: a weighted mean of one metric of each task.

    Args:
        tasks: name → metric.

    Raises:
        UnknownNameError: no such task, or no such metric on it.
        UserError: some of the metrics rise and others fall.
    """
    ways = {name: higher_is_better(name, metric) for name, metric in tasks.items()}
    if len({*ways.values()}) > 1:
        said = ", ".join(
            f"{metric} of {name} {'rises' if ways[name] else 'falls'}"
            for name, metric in tasks.items()
        )
        raise UserError(
            f"tasks: one objective cannot both rise and fall ({said}); "
            "choose metrics of the same direction"
        )
    return all(ways.values())


def _least_documents(metric: str, margin: float) -> int:
    """A mean of anything else may not vary at all: two documents could show its loss."""
    return least_documents(margin) if metric in ZERO_ONE else 2


def _merge_check(name: str) -> Callable[[Mapping[str, Any]], None]:
    def check(parameters: Mapping[str, Any]) -> None:
        merge_of(name, **parameters)

    return check
