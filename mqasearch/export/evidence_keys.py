"""Held-out results in the form of a mask JSON."""

from collections.abc import Mapping
from typing import Any

Evidence = dict[str, Any]


def evidence(tasks: Mapping[str, Mapping[str, Any]]) -> tuple[Evidence, Evidence, Evidence]:
    """The mask's scores, the original's and the paired differences, each as task → metric → row.

    Args:
        tasks: task → metric → row, as ``confirm`` writes it into a study.
    """
    scores, baseline, delta = {}, {}, {}
    for task, metrics in tasks.items():
        common = {
            metric: {"n_docs": row["n_docs"], "split": "confirmation"}
            for metric, row in metrics.items()
        }
        scores[task] = {
            metric: {"value": row["value"], "stderr": row["stderr"], **common[metric]}
            for metric, row in metrics.items()
        }
        baseline[task] = {
            metric: {
                "value": row["original"],
                "stderr": row.get("original_stderr"),
                **common[metric],
            }
            for metric, row in metrics.items()
        }
        delta[task] = {metric: row["delta"] for metric, row in metrics.items() if "delta" in row}
    return scores, baseline, delta
