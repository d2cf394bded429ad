"""The original model's states on the healing's text: computed once and used at every step."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mqasearch.conversion import TokenBatch
from mqasearch.models import ResumableModel
from mqasearch.time_left import TimeLeft

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Lesson:
    """One batch, and the original's states.

    Attributes:
        batch: the tokens.
        before: [rows, length, D], states before the first converted block, where the converted
            model still agrees with the original; None if that is the model's first block.
        behind: [rows, length, D], states after the last block.
    """

    batch: TokenBatch
    before: Tensor | None
    behind: Tensor

    def part(self, rows: slice, device: torch.device) -> "Lesson":
        """The lesson with only these rows, on ``device``."""
        batch = TokenBatch(self.batch.tokens[rows], self.batch.real[rows]).to(device)
        before = None if self.before is None else self.before[rows].to(device)
        return Lesson(batch, before, self.behind[rows].to(device))


def lessons(
    model: ResumableModel, batches: Sequence[TokenBatch], first: int, device: torch.device
) -> list[Lesson]:
    """Run the original on all batches; states are kept on the CPU.

    Args:
        model: the model with the original's weights.
        batches: batches of text.
        first: the first converted layer.
        device: the model's device.
    """
    taught: list[Lesson] = []
    told = TimeLeft(logger, "the original reads the text to heal on")
    wanted = {model.n_layers, first} if first else {model.n_layers}
    with torch.no_grad():
        for batch in batches:
            states = model.run(batch.tokens.to(device), wanted=wanted)
            before = states[first].cpu() if first else None
            taught.append(Lesson(batch, before, states[model.n_layers].cpu()))
            told(len(taught), len(batches))
    return taught
