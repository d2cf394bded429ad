"""KL(original ‖ converted) of next-token distributions, and its gradient at the hidden states.

The head is run on a few tokens at a time, once for the original's states and once for the converted
model's, so that memory never holds the logits of a batch. The gradient with respect to the
converted model's logits is known in closed form: softmax(converted) − softmax(original).
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from mqasearch.models import ResumableModel

_CPU_LOGITS, _GPU_LOGITS = 2**22, 2**27
"""Numbers in one piece of logits. On a CPU it is small enough for the allocator to reuse it."""


def rows_at_once(device: torch.device, vocabulary: int) -> int:
    """Tokens whose logits are computed together."""
    return max(1, (_CPU_LOGITS if device.type == "cpu" else _GPU_LOGITS) // vocabulary)


def divergence(
    model: ResumableModel, original: Tensor, converted: Tensor, vocabulary: int
) -> float:
    """Sum over tokens of the divergence, in nats.

    Args:
        model: the model whose final norm and head are applied.
        original, converted: [n, D], states after the last block.
        vocabulary: number of tokens in the head's vocabulary.
    """
    total = 0.0
    rows = rows_at_once(converted.device, vocabulary)
    with torch.no_grad():
        for before, after in _pieces(original, converted, rows):
            total += float(_summed(_log_probs(model, before), _log_probs(model, after)))
    return total


def divergence_and_gradient(
    model: ResumableModel, original: Tensor, converted: Tensor, vocabulary: int, scale: float
) -> tuple[float, Tensor]:
    """``divergence``, and ``scale`` times its gradient with respect to ``converted``."""
    total = 0.0
    rows = rows_at_once(converted.device, vocabulary)
    gradients = []
    for before, after in _pieces(original, converted, rows):
        with torch.no_grad():
            wanted = _log_probs(model, before)
        leaf = after.detach().requires_grad_()
        with torch.enable_grad():
            logits = model.head(leaf)
        with torch.no_grad():
            found = logits.float().log_softmax(-1)
            total += float(_summed(wanted, found))
            apart = found.exp_().sub_(wanted.exp_()).mul_(scale).to(logits.dtype)
        gradients.append(torch.autograd.grad(logits, leaf, apart)[0])
    return total, torch.cat(gradients)


def _pieces(original: Tensor, converted: Tensor, rows: int) -> Iterable[tuple[Tensor, Tensor]]:
    return zip(torch.split(original, rows), torch.split(converted, rows), strict=True)


def _log_probs(model: ResumableModel, hidden: Tensor) -> Tensor:
    log_probs: Tensor = model.head(hidden).float().log_softmax(-1)
    return log_probs


def _summed(wanted: Tensor, found: Tensor) -> Tensor:
    return torch.nn.functional.kl_div(found, wanted, reduction="sum", log_target=True)
