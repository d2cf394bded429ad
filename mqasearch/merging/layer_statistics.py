"""What calibration knows about each attention layer: the input of every merge that looks at data.

A merge reads these types and nothing else; ``calibration.py`` gathers and caches them.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class LayerStatistics:
    """One layer's statistics over the calibration tokens of the original model.

    The first token of each sequence is counted apart: its keys are often far larger than all
    others, whichever token it is, and they would dominate every mean.

    Attributes:
        n_tokens: number of tokens that were counted, without the first ones.
        x_moment: ``[D + 1, D + 1]`` float64, mean of x̃x̃ᵀ with x̃ = (x, 1), x the post-norm input
            of the attention block. Its last row is the mean of x; every second moment of q, k and
            v follows from it, since they are affine in x.
        n_first: number of first tokens that were counted.
        first_moment: the same mean over the first tokens; None if none were counted.
        fitted: target number of KV heads → tensors by field name of ``AttentionWeights``: the
            layer after merge and refit. Empty if the merge has no refit.
    """

    n_tokens: int
    x_moment: Tensor
    n_first: int = 0
    first_moment: Tensor | None = None
    fitted: Mapping[int, Mapping[str, Tensor]] = field(default_factory=dict)

    def moment(self, first_token: float) -> Tensor:
        """``x_moment`` with every first token counted ``first_token`` times."""
        if self.first_moment is None or first_token == 0:
            return self.x_moment
        weight = first_token * self.n_first
        total = self.n_tokens * self.x_moment + weight * self.first_moment
        return total / (self.n_tokens + weight)


@dataclass(frozen=True, slots=True)
class Place:
    """Where numbers were computed: elsewhere the same sums are rounded differently.

    Attributes:
        device: torch's device type.
        threads: number of threads that torch uses within one operation.
    """

    device: str
    threads: int


@contextmanager
def threads(number: int | None) -> Iterator[None]:
    """Let torch use this number of threads within the block; None = the number does not change."""
    before = torch.get_num_threads()
    if number is not None:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True, slots=True)
class Statistics:
    """A model's statistics.

    Attributes:
        layers: one entry per attention layer, layer 0 first.
        digest: SHA-256 (hex) over model, text and method: the ``calibration`` field of a
            ``ScoreKey``. The layers fitted for a merge and a number of heads need no digest of
            their own, as the key names both.
        places: part of the statistics ("moments", "fitted to 1") → where it was computed. Another
            process may have computed a part that comes from the cache.
    """

    layers: tuple[LayerStatistics, ...]
    digest: str
    places: Mapping[str, Place] = field(default_factory=dict)
