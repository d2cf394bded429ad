"""Calibration text, split into a part to train on and a held-out part that decides when to stop."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from mqasearch.conversion import TokenBatch, token_batches
from mqasearch.errors import UserError

HELD_OUT = 6
"""One text in this many is held out."""
MOST_HELD_OUT_TOKENS = 8192
"""About the greatest number of held-out tokens; there are few, since they are measured often."""
LEAST_TEXTS = 12


@dataclass(frozen=True, slots=True)
class HealingText:
    """Batches of calibration text.

    Attributes:
        training: batches to train on.
        held_out: batches that decide which state is kept.
    """

    training: tuple[TokenBatch, ...]
    held_out: tuple[TokenBatch, ...]

    @property
    def n_tokens(self) -> int:
        """Number of tokens to train on, without padding."""
        return sum(int(batch.real.sum()) for batch in self.training)

    def in_order(self, seed: int) -> Iterator[int]:
        """An endless sequence of indices of training batches; each pass has an order of its own."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            yield from torch.randperm(len(self.training), generator=generator).tolist()


def healing_text(
    sequences: Sequence[Sequence[int]], batch_tokens: int, max_length: int
) -> HealingText:
    """Split texts and make batches of texts of similar length.

    Args:
        sequences: token ids of calibration texts.
        batch_tokens: tokens in a batch, padding included.
        max_length: longer texts are cut into pieces.

    Raises:
        UserError: fewer than twelve texts.
    """
    texts = [text for text in sequences if text]
    if len(texts) < LEAST_TEXTS:
        raise UserError(
            f"healing holds one calibration text in {HELD_OUT} out and needs {LEAST_TEXTS} or "
            f"more; there are {len(texts)}: allow more text (heal.tokens in a study, "
            "--heal-tokens), or add a task"
        )
    held_out: list[Sequence[int]] = []
    training: list[Sequence[int]] = []
    n_held_out = 0
    for index, text in enumerate(texts):
        is_held_out = index % HELD_OUT == 0 and n_held_out < MOST_HELD_OUT_TOKENS
        (held_out if is_held_out else training).append(text)
        n_held_out += is_held_out * len(text)
    return HealingText(
        tuple(token_batches(training, batch_tokens, max_length)),
        tuple(token_batches(held_out, batch_tokens, max_length)),
    )
