"""Correct p values for the number of masks that are compared with the original."""

from collections.abc import Sequence
from typing import Any

from mqasearch.statistics.paired import holm

Document = dict[str, Any]


def corrected(masks: Sequence[Document]) -> list[Document]:
    """The masks (mask JSON), with ``p_holm`` beside ``p_value`` in their differences.

    The correction (Holm) counts the different masks that have a difference of the same metric on
    the same task. Two selectors that end with the same mask count as one test.
    """
    families: dict[tuple[str, str], dict[tuple[int, ...], float]] = {}
    for mask in masks:
        for task, metrics in mask["delta"].items():
            for metric, row in metrics.items():
                families.setdefault((task, metric), {})[tuple(mask["mask"])] = row["p_value"]
    found = {
        family: dict(zip(p_values, holm(list(p_values.values())), strict=True))
        for family, p_values in families.items()
    }
    return [_with_holm(mask, found) for mask in masks]


def _with_holm(
    mask: Document, found: dict[tuple[str, str], dict[tuple[int, ...], float]]
) -> Document:
    key = tuple(mask["mask"])
    delta = {
        task: {
            metric: {**row, "p_holm": found[task, metric][key]} for metric, row in metrics.items()
        }
        for task, metrics in mask["delta"].items()
    }
    return {**mask, "delta": delta}
