"""Log-probabilities of a few tokens of a large vocabulary, computed in little memory."""

from dataclasses import dataclass

import torch
from torch import Tensor

_CACHED_ELEMENTS = 2**18
"""float32 numbers that a core's second-level cache holds: on a CPU, the exponentials are four times
faster in pieces of this size than over all rows at once (measured with 49,152 words)."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """KL(original ‖ converted) of next-token distributions, summed over tokens, in nats.

    Attributes:
        total: sum over all tokens that count.
        n_tokens: number of tokens that count.
        answer: sum over the continuation's tokens.
        n_answer: number of the continuation's tokens.
    """

    total: float
    n_tokens: int
    answer: float
    n_answer: int


def log_probabilities(
    logits: Tensor, normalisers: Tensor, highest: Tensor, places: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target at its place, and whether no other token is likelier.

    Everything after the logits is computed in float32; the logits may have any dtype.

    Args:
        logits: [n, vocabulary].
        normalisers, highest: as ``normalised`` returns them.
        places: [t], row of each target.
        targets: [t], token ids.

    Returns:
        [t] float32 and [t] bool. In a tie the target counts as likeliest here; see
        ``first_likeliest``.
    """
    chosen = logits[places, targets].float()
    return chosen - normalisers[places], chosen >= highest[places]


def divergences(original: Tensor, logits: Tensor, normalisers: Tensor) -> Tensor:
    """[n] float32: KL(softmax(original) ‖ softmax(logits)) of each row, in nats.

    It is computed as Σ p (o − c) − (ln Σ eᵒ − ln Σ eᶜ). This form subtracts nearly equal numbers
    before it sums, and is exactly 0 for equal logits.

    Args:
        original, logits: [n, vocabulary].
        normalisers: [n], ln Σ eᶜ of ``logits``, float32.
    """
    n, vocabulary = logits.shape
    found = torch.empty(n, device=logits.device)
    step = max(1, _elements(logits) // vocabulary)
    shape = min(step, n), vocabulary
    apart_buffer, chances_buffer = (torch.empty(shape, device=logits.device) for _ in range(2))
    for first in range(0, n, step):
        before, after = original[first : first + step], logits[first : first + step]
        apart, chances = apart_buffer[: len(before)], chances_buffer[: len(before)]
        chances.copy_(before)
        torch.sub(chances, after, out=apart)
        top = chances.amax(dim=-1, keepdim=True)
        mass = chances.sub_(top).exp_().sum(dim=-1)
        total = mass.log() + top[:, 0]
        mean_apart = torch.linalg.vecdot(chances, apart) / mass
        found[first : first + step] = mean_apart - (total - normalisers[first : first + step])
    return found.clamp_(min=0.0)


def first_likeliest(logits: Tensor, places: Tensor, targets: Tensor) -> Tensor:
    """[t] bool: whether ``argmax`` returns the target; it breaks ties as lm-eval does."""
    return logits[places].argmax(dim=-1) == targets


def normalised(logits: Tensor) -> tuple[Tensor, Tensor]:
    """[n] logsumexp and [n] maximum of each row of [n, vocabulary], float32."""
    if logits.device.type != "cpu":
        whole = logits.float()
        return whole.logsumexp(dim=-1), whole.amax(dim=-1)
    n, vocabulary = logits.shape
    step = max(1, _elements(logits) // vocabulary)
    buffer = torch.empty(min(step, n), vocabulary)
    totals, highest = torch.empty(n), torch.empty(n)
    for first in range(0, n, step):
        piece = logits[first : first + step]
        values = buffer[: len(piece)]
        values.copy_(piece)
        top = values.amax(dim=-1, keepdim=True)
        total = values.sub_(top).exp_().sum(dim=-1)
        totals[first : first + step] = total.log_().add_(top[:, 0])
        highest[first : first + step] = top[:, 0]
    return totals, highest


def _elements(logits: Tensor) -> int:
    """How many numbers to work on at once."""
    return _CACHED_ELEMENTS if logits.device.type == "cpu" else logits.numel()
