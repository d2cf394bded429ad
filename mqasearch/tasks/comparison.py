"""A document under the original model and under a converted one: where do the two part?

``kl``
    Mean over a document's tokens, context and right answer, of KL(p_original ‖ p_converted) of the
    next-token distribution, in nats, over the whole vocabulary. Of a text without a question
    (rolling log-likelihoods) over the text.
``answer_kl``
    The same over the right answer's tokens.
``flips``
    1 if the converted model chooses another answer than the original (Dutta et al. 2024, "Accuracy
    is not all you need"), by the rule of ``acc_norm`` if the task reports that, else of ``acc``.

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
        whole: whether the context's tokens count too. Those of a window of a longer text do not:
            they are continuations of the window before.
    """

    pair: TokenPair
    whole: bool


@dataclass(frozen=True, slots=True)
class Comparison:
    """A document's answers beside the original's.

    Attributes:
        original: the original's responses, one for each request.
        divergences: of each passage; empty for the original itself.
    """

    original: Sequence[Any]
    divergences: tuple[Divergence, ...]


def compared_request(document: PreparedDocument, right: Sequence[int]) -> int:
    """The request whose text is compared: that of the first right answer.

    Args:
        document: of a task with log-likelihoods.
        right: indices of the right answers; of none the first request counts.
    """
    return right[0] if right else 0


def compared_metrics(
    document: PreparedDocument, responses: Sequence[Any], comparison: Comparison
) -> dict[str, float]:
    """``kl``, ``answer_kl`` and ``flips`` of a document, as far as its type of task has them."""
    found = {
        "kl": _mean((d.total, d.n_tokens) for d in comparison.divergences),
        "answer_kl": _mean((d.answer, d.n_answer) for d in comparison.divergences),
    }
    if document.task.OUTPUT_TYPE == "multiple_choice":
        ours, theirs = (_choice(document, given) for given in (responses, comparison.original))
        found["flips"] = float(ours != theirs)
    return {metric: found[metric] for metric in COMPARISONS[document.task.OUTPUT_TYPE]}


def is_compared(task: Task) -> bool:
    """Whether a task's documents can be compared: those of log-likelihoods can."""
    return task.OUTPUT_TYPE in COMPARISONS


def _mean(sums: Iterable[tuple[float, int]]) -> float:
    totals, counts = zip(*sums, strict=True) if (sums := list(sums)) else ((), ())
    return sum(totals) / sum(counts) if sum(counts) else 0.0


def _choice(document: PreparedDocument, responses: Sequence[Any]) -> int:
    """Index of the answer that a model chooses, as lm-eval's accuracy sees it."""
    choices = document.task.doc_to_choice(document.document)
    likelihoods = np.array([response[0] for response in responses[: len(choices)]])
    if "acc_norm" in document.task.aggregation():
        likelihoods = likelihoods / np.array([float(len(choice)) for choice in choices])
    return int(np.argmax(likelihoods))
