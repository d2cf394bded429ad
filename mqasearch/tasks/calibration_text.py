"""Texts to calibrate merges on: benchmark documents that no score ever uses."""

from collections.abc import Sequence

from lm_eval.api.instance import Instance
from transformers import PreTrainedTokenizerBase

from mqasearch.score import Documents, TaskSpec
from mqasearch.tasks.metrics import gold_choices
from mqasearch.tasks.prepared import PreparedDocument, TaskLibrary


def calibration_tokens(
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[TaskSpec | str],
    n_tokens: int,
    *,
    seed: int = 0,
    library: TaskLibrary | None = None,
) -> list[list[int]]:
    """Token sequences of the calibration split: each document's prompt with its right answer.

    Documents are taken from the tasks in turn until ``n_tokens`` are reached (the last one is cut)
    or all are used up; a small benchmark may give fewer tokens.

    Args:
        tokenizer: the model's tokenizer.
        tasks: benchmarks of the study.
        n_tokens: number of tokens in all.
        seed: seed of the order of the documents.
        library: prepared tasks to share with a scorer.

    Returns:
        One list of token ids per document.
    """
    library = library or TaskLibrary()
    documents = Documents("calibration", seed=seed)
    specs = [TaskSpec(task) if isinstance(task, str) else task for task in tasks]
    queues = [library.task(spec, documents).in_order(documents) for spec in specs]
    sequences: list[list[int]] = []
    missing = n_tokens
    while queues and missing > 0:
        queue = queues.pop(0)
        document = next(queue, None)
        if document is None:
            continue
        queues.append(queue)
        tokens = tokenizer.encode(right_text(document))[:missing]
        if tokens:
            sequences.append(list(tokens))
            missing -= len(tokens)
    return sequences


def right_text(document: PreparedDocument) -> str:
    """A document's prompt, followed by its right answer if it has one."""
    instances = document.instances
    right = gold_choices(document)
    instance = instances[right[0]] if right else instances[0]
    return _text(instance)


def _text(instance: Instance) -> str:
    """All text of a request: context and continuation, or the whole text; settings are left out."""
    return "".join(part for part in instance.args if isinstance(part, str))
