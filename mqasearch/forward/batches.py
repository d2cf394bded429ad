"""From lm-eval's token requests to batches of rows, and back to one answer for each request."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from mqasearch.forward.trees import Row, Tokens, chain_rows, forest_rows

TokenPair = tuple[Tokens, Tokens]
"""Context and continuation."""

Answer = tuple[float, bool]
"""Log-likelihood of the continuation, and whether each of its tokens is the likeliest."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Rows that run at once, padded to the longest.

    Attributes:
        tokens: [rows, length] token ids.
        positions: [rows, length], or None if every row is one sequence.
        visible: [rows, 1, length, length] bool, True if a token (second to last axis) attends to
            another (last axis); None if every row is one sequence, which needs causal attention
            only.
        scored: [n] places in the flattened batch that predict something, ascending.
        places: [t] the place of each target, as an index into ``scored``.
        targets: [t] token ids that are to be predicted.
        owners: [t] the request that each target belongs to.
        compared: [c] places whose distribution is compared with the original's, each an index into
            ``scored``, ascending.
        spots: [s] the place of each token of each passage, as an index into ``compared``.
        passages: [s] the request whose passage each of these tokens belongs to.
        answers: [s] bool, True for tokens of the continuation.
    """

    tokens: Tensor
    positions: Tensor | None
    visible: Tensor | None
    scored: Tensor
    places: Tensor
    targets: Tensor
    owners: Tensor
    compared: Tensor
    spots: Tensor
    passages: Tensor
    answers: Tensor

    @property
    def n_tokens(self) -> int:
        """Number of tokens that are run, padding included."""
        return self.tokens.numel()


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Everything about a list of requests that does not depend on the weights.

    Attributes:
        n_requests: number of requests that it answers.
        batches: the batches, longest rows first.
        compared: the requests whose passages are compared with the original's.
    """

    n_requests: int
    batches: tuple[Batch, ...]
    compared: tuple[int, ...] = ()

    @property
    def n_tokens(self) -> int:
        """Number of tokens that are run through each layer, padding included."""
        return sum(batch.n_tokens for batch in self.batches)

    @property
    def n_compared(self) -> int:
        """Number of places whose distributions are compared with the original's."""
        return sum(len(batch.compared) for batch in self.batches)

    @property
    def has_trees(self) -> bool:
        """Whether any batch needs tree attention."""
        return any(batch.visible is not None for batch in self.batches)

    def deepest(self) -> int:
        """Length of the longest sequence in a tree."""
        return max(int(b.positions.max()) + 1 for b in self.batches if b.positions is not None)


def plan_of(
    pairs: Sequence[TokenPair],
    *,
    max_length: int,
    batch_tokens: int,
    row_tokens: int,
    trees: bool = True,
    device: torch.device | None = None,
    passages: Mapping[TokenPair, bool] = MappingProxyType({}),
) -> Plan:
    """Arrange requests in rows and batches.

    Args:
        pairs: the requests; neither part is empty.
        max_length: the model's greatest input length. A longer request loses tokens at its
            beginning, as in HFLM: the input is the last ``max_length + 1`` tokens without the very
            last.
        batch_tokens: tokens in a batch, padding included; a longer row is a batch by itself.
        row_tokens: as in ``forest_rows``.
        trees: whether rows may be trees; if not, each distinct input has a row of its own.
        device: the tensors' device.
        passages: request whose distributions are compared with the original's → whether the
            context's tokens count too.
    """
    inputs: dict[Tokens, int] = {}
    sequence_of = [
        inputs.setdefault((context + continuation)[-(max_length + 1) :][:-1], len(inputs))
        for context, continuation in pairs
    ]
    sequences = list(inputs)
    rows = forest_rows(sequences, row_tokens) if trees else chain_rows(sequences)
    requests_of: dict[int, list[int]] = {}
    for request, sequence in enumerate(sequence_of):
        requests_of.setdefault(sequence, []).append(request)
    first = {pair: request for request, pair in reversed([*enumerate(pairs)])}
    compared = {first[pair]: whole for pair, whole in passages.items() if pair in first}
    asked = _Asked(pairs, requests_of, compared)
    batches = tuple(_batch(group, asked, device) for group in _groups(rows, batch_tokens))
    return Plan(len(pairs), batches, tuple(sorted(compared)))


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is asked of each sequence.

    Attributes:
        pairs: the requests.
        requests_of: sequence → its requests.
        compared: request that is compared → whether the context's tokens count too.
    """

    pairs: Sequence[TokenPair]
    requests_of: Mapping[int, Sequence[int]]
    compared: Mapping[int, bool]

    def targets(self, row: Row) -> Iterator[tuple[int, int, int]]:
        """Triples of a place in the row, the token that it is to predict, and the request."""
        for sequence in row.ends:
            for request in self.requests_of[sequence]:
                continuation = self.pairs[request][1]
                places = row.last(sequence, len(continuation))
                yield from zip(places, continuation, [request] * len(places), strict=True)

    def passages(self, row: Row) -> Iterator[tuple[int, int, bool]]:
        """Triples of a compared place, its request, and whether it predicts the continuation."""
        for sequence, end in row.ends.items():
            for request in self.requests_of[sequence]:
                if request not in self.compared:
                    continue
                n_answer = len(self.pairs[request][1])
                n_tokens = row.depth(end) if self.compared[request] else n_answer
                for number, place in enumerate(row.last(sequence, n_tokens)):
                    yield place, request, number >= n_tokens - n_answer


def _groups(rows: Sequence[Row], batch_tokens: int) -> Iterator[Sequence[Row]]:
    """Groups of rows of similar length, one for each batch; trees and plain sequences are apart."""
    for kind in (True, False):
        same = [row for row in rows if row.is_chain is kind]
        start = 0
        while start < len(same):
            count = max(1, batch_tokens // len(same[start]))
            yield same[start : start + count]
            start += count


def _batch(rows: Sequence[Row], asked: _Asked, device: torch.device | None) -> Batch:
    length = max(map(len, rows))
    tokens = np.zeros((len(rows), length), dtype=np.int64)
    targets_at: dict[int, list[tuple[int, int]]] = {}
    passages_at: dict[int, list[tuple[int, bool]]] = {}
    for number, row in enumerate(rows):
        tokens[number, : len(row)] = row.tokens
        start = number * length
        for place, target, request in asked.targets(row):
            targets_at.setdefault(start + place, []).append((target, request))
        for place, request, is_answer in asked.passages(row):
            passages_at.setdefault(start + place, []).append((request, is_answer))
    scored = sorted(targets_at.keys() | passages_at.keys())
    compared = [index for index, place in enumerate(scored) if place in passages_at]
    places, targets, owners = _flat(
        (i, *t) for i, p in enumerate(scored) for t in targets_at.get(p, ())
    )
    spots, passages, answers = _flat(
        (i, *passage) for i, index in enumerate(compared) for passage in passages_at[scored[index]]
    )
    trees = not all(row.is_chain for row in rows)

    def tensor(values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=device)

    return Batch(
        tokens=torch.from_numpy(tokens).to(device),
        positions=torch.from_numpy(_positions(rows, length)).to(device) if trees else None,
        visible=torch.from_numpy(_visible(rows, length)).to(device) if trees else None,
        scored=tensor(scored),
        places=tensor(places),
        targets=tensor(targets),
        owners=torch.tensor(owners, dtype=torch.long),
        compared=tensor(compared),
        spots=torch.tensor(spots, dtype=torch.long),
        passages=torch.tensor(passages, dtype=torch.long),
        answers=torch.tensor(answers, dtype=torch.bool),
    )


def _flat(rows: Iterable[tuple[int, int, int]]) -> tuple[Sequence[int], ...]:
    """The three columns of rows of three."""
    columns = tuple(zip(*rows, strict=True))
    return columns or ((), (), ())


def _positions(rows: Sequence[Row], length: int) -> np.ndarray:
    positions = np.zeros((len(rows), length), dtype=np.int64)
    for number, row in enumerate(rows):
        positions[number, : len(row)] = row.positions()
    return positions


def _visible(rows: Sequence[Row], length: int) -> np.ndarray:
    """The mask of ``Batch.visible``: each token attends to itself and its ancestors.

    Padding attends to itself, so that no row of the mask is empty.
    """
    visible = np.zeros((len(rows), 1, length, length), dtype=bool)
    visible[:, :, range(length), range(length)] = True
    for number, row in enumerate(rows):
        seen = visible[number, 0]
        for place, parent in enumerate(row.parents):
            if parent >= 0:
                seen[place] |= seen[parent]
    return visible
