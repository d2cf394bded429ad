"""Stock lm-eval: a plain HFLM and ``evaluate``, on a model converted by plain arithmetic."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from lm_eval.api.task import Task
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel, PreTrainedTokenizerBase

Samples = dict[int, dict[str, Any]]
"""Row of the document → what lm-eval logged of it."""


def average_heads(model: PreTrainedModel, layers: Iterable[int]) -> None:
    """Turn layers of a Llama into multi-query attention in place, by the mean of the KV heads."""
    n = model.config.num_key_value_heads
    with torch.no_grad():
        for layer in layers:
            attention = model.model.layers[layer].self_attn
            for projection in (attention.k_proj, attention.v_proj):
                heads = torch.chunk(projection.weight.double(), n, dim=0)
                mean = torch.stack(heads).sum(0) / n
                projection.weight.copy_(torch.cat([mean] * n).to(projection.weight.dtype))


def stock_samples(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    rows: Sequence[int],
    **options: Any,
) -> Samples:
    """lm-eval's per-document log of a task's documents, by row."""
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, **options)
    name = task.task_name
    results = evaluate(lm, {"tasks": {name: task}}, samples={name: sorted(rows)}, bootstrap_iters=0)
    return {sample["doc_id"]: sample for sample in results["samples"][name]}
