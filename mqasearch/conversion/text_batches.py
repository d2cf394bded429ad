"""Calibration text in batches of similar length, so that little of it is padding."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class TokenBatch:
    """Rows of tokens, padded at the end. A causal model needs no attention mask for such padding.

    Attributes:
        tokens: [rows, length] int64.
        real: [rows, length] bool, False for padding.
    """

    tokens: Tensor
    real: Tensor

    @property
    def parity(self) -> Tensor:
        """[real tokens] bool: the half of all texts that each token's row belongs to.

        It is the parity of the sum of the row's token ids (padding is 0), and so it does not depend
        on how rows are batched.
        """
        odd = self.tokens.sum(dim=1) % 2 == 1
        return odd[:, None].expand_as(self.real)[self.real]

    def to(self, device: torch.device) -> "TokenBatch":
        """The same batch on another device."""
        return TokenBatch(self.tokens.to(device), self.real.to(device))


def token_batches(
    sequences: Sequence[Sequence[int]], max_tokens: int, max_length: int
) -> Iterator[TokenBatch]:
    """Every token of ``sequences`` once, shortest sequences first.

    Args:
        sequences: token ids.
        max_tokens: most tokens in a batch, padding included; a longer row is a batch of its own.
        max_length: longer sequences are cut into pieces.
    """
    pieces = [
        sequence[start : start + max_length]
        for sequence in sequences
        for start in range(0, len(sequence), max_length)
    ]
    rows: list[Sequence[int]] = []
    for piece in sorted(pieces, key=len):
        if rows and len(piece) * (len(rows) + 1) > max_tokens:
            yield _padded(rows)
            rows = []
        rows.append(piece)
    if rows:
        yield _padded(rows)


def _padded(rows: Sequence[Sequence[int]]) -> TokenBatch:
    length = max(len(row) for row in rows)
    tokens = torch.zeros(len(rows), length, dtype=torch.long)
    real = torch.zeros(len(rows), length, dtype=torch.bool)
    for index, row in enumerate(rows):
        tokens[index, : len(row)] = torch.tensor(row)
        real[index, : len(row)] = True
    return TokenBatch(tokens, real)
