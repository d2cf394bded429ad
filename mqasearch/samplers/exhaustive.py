"""Every mask at the budget."""

import itertools
import math
from collections.abc import Sequence
from functools import cached_property
from typing import ClassVar

import numpy as np

from mqasearch.errors import UserError
from mqasearch.mask import LayerMask
from mqasearch.samplers.base import MaskSampler
from mqasearch.samplers.history import MaskTrial, taken

LIMIT = 20_000
"""More masks than this are refused."""

_CHOICE = 64
"""Masks that a worker may choose from: neighbours, so that all of them share much."""


class ExhaustiveSampler(MaskSampler):
    """All masks at the budget, in lexicographic order of their layers; then it is done.

    Neighbours in this order share most of their first layers, which suits a scorer that keeps
    hidden states.

    Raises:
        UserError: more than ``LIMIT`` masks.
    """

    name: ClassVar[str] = "exhaustive"
    summary: ClassVar[str] = f"all masks at the budget, where there are at most {LIMIT:,}"
    ends: ClassVar[bool] = True

    def __init__(self, n_layers: int, n_converted: int, seed: int = 0) -> None:
        super().__init__(n_layers, n_converted, seed)
        if (n_masks := math.comb(n_layers, n_converted)) > LIMIT:
            raise UserError(
                f"{n_converted} of {n_layers} layers make {n_masks:,} masks, more than the "
                f"{LIMIT:,} that the selector 'exhaustive' takes on; choose 'greedy'"
            )

    def propose(self, history: Sequence[MaskTrial], rng: np.random.Generator) -> LayerMask:
        """One of the first unseen ones."""
        left = self.certain(history)
        return self.prefer(left) if left else self.random_mask(history, rng)

    def certain(self, history: Sequence[MaskTrial]) -> Sequence[LayerMask]:
        """The first unseen ones."""
        seen = taken(history)
        left = (mask for mask in self._masks if mask not in seen)
        return [*itertools.islice(left, _CHOICE)]

    @cached_property
    def _masks(self) -> list[LayerMask]:
        chosen = itertools.combinations(range(self.n_layers), self.n_converted)
        return [LayerMask.of(layers, self.n_layers) for layers in chosen]
