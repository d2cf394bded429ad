"""How much a converted model's answers to a document differ from the original model's.

``kl``
    Mean of KL(p_original ‖ p_converted) of the next-token distribution, in nats, over the whole
    vocabulary. The mean is over the document's tokens: context and right answer, or the text if
    there is no question (rolling log-likelihoods).
``answer_kl``
    The same mean over the right answer's tokens.
``flips``
    1 if the converted model chooses another answer than the original (Dutta et al. 2024, "Accuracy
    is not all you need"). The choice follows the rule of ``acc_norm`` if the task reports that, and
    else that of ``acc``.

All three are 0 for the original, and need no label beyond the text.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from lm_eval.api.task import Task

from mqasearch.forward import Divergence, TokenPair
from mqasearch.tasks.prepared import PreparedDocument

COMPARISONS = {
    "multiple_choice": ("kl", "answer_kl", "flips"),
    "loglikelihood": ("kl", "answer_kl"),
    "loglikelihood_rolling": ("kl",),
}
"""lm-eval's output type → what is compared with the original."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A token request of a document whose next-token distributions are compared.

    Attributes:
        pair: context and continuation.
        whole: whether the context's tokens count too. In a window of a longer text they do not,
            since they are counted as the continuation of the window before.
    """

    pair: TokenPair
    whole: bool


@dataclass(frozen=True, slots=True)
class Comparison:
    """The original's answers to a document, and the divergences from the original.

    Attributes:
        original: the original's responses, one for each request.
        divergences: each passage's divergence; empty for the original itself.
    """

    original: Sequence[Any]
    divergences: tuple[Divergence, ...]


def compared_request(document: PreparedDocument, right: Sequence[int]) -> int:
    """The request whose text is compared: that of the first right answer.

    Args:
        document: a document of a task with log-likelihoods.
        right: indices of the right answers; if there are none, the first request is compared.
    """
    return right[0] if right else 0


def compared_metrics(
    document: PreparedDocument, responses: Sequence[Any], comparison: Comparison
) -> dict[str, float]:
    """Those of ``kl``, ``answer_kl`` and ``flips`` that a document's type of task has."""
    found = {
        "kl": _mean((d.total, d.n_tokens) for d in comparison.divergences),
        "answer_kl": _mean((d.answer, d.n_answer) for d in comparison.divergences),
    }
    if document.task.OUTPUT_TYPE == "multiple_choice":
        ours, theirs = (_choice(document, given) for given in (responses, comparison.original))
        found["flips"] = float(ours != theirs)
    return {metric: found[metric] for metric in COMPARISONS[document.task.OUTPUT_TYPE]}


def is_compared(task: Task) -> bool:
    """Whether a task's documents can be compared, which means that it has log-likelihoods."""
    return task.OUTPUT_TYPE in COMPARISONS


def _mean(sums: Iterable[tuple[float, int]]) -> float:
    totals, counts = zip(*sums, strict=True) if (sums := list(sums)) else ((), ())
    return sum(totals) / sum(counts) if sum(counts) else 0.0


def _choice(document: PreparedDocument, responses: Sequence[Any]) -> int:
    """Index of the answer that a model chooses by the rule of lm-eval's accuracy."""
    choices = document.task.doc_to_choice(document.document)
    likelihoods = np.array([response[0] for response in responses[: len(choices)]])
    if "acc_norm" in document.task.aggregation():
        likelihoods = likelihoods / np.array([float(len(choice)) for choice in choices])
    return int(np.argmax(likelihoods))
