"""Every mask at the budget."""

import itertools
import math
from functools import cached_property
from typing import ClassVar

from mqasearch.errors import UserError
from mqasearch.mask import LayerMask
from mqasearch.selectors.history import History
from mqasearch.selectors.selector import Selector, Wants

LIMIT = 20_000
"""The largest number of masks; more are refused."""

_CHOICE = 64
"""Number of masks that are wanted at once: neighbours in the order, which share most layers."""


class ExhaustiveSelector(Selector):
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

    def expected_trials(self) -> int:
        """Every mask at the budget."""
        return math.comb(self.n_layers, self.n_converted)

    def most_invalid_in_a_row(self) -> int:
        """At least one more than there are masks with layer 0, since all of these come first."""
        with_one = math.comb(self.n_layers - 1, self.n_converted - 1)
        return max(super().most_invalid_in_a_row(), with_one + 1)

    def wants(self, history: History) -> Wants:
        """The first unseen masks, in any order, since all of them will be scored."""
        if (ended := self.none_left(history)) is not None:
            return ended
        left = (mask for mask in self._masks if mask not in history.taken)
        first = [*itertools.islice(left, _CHOICE)]
        return Wants(first, first)

    @cached_property
    def _masks(self) -> list[LayerMask]:
        chosen = itertools.combinations(range(self.n_layers), self.n_converted)
        return [LayerMask.of(layers, self.n_layers) for layers in chosen]
