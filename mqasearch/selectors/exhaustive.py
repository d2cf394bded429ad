"""Every mask at the budget."""

import itertools
from functools import cached_property
from typing import ClassVar

from mqasearch.errors import UserError
from mqasearch.mask import LayerMask
from mqasearch.search_space import SearchSpace
from mqasearch.selectors.history import History
from mqasearch.selectors.masks_of_size import MasksOfSize, masks_of_size
from mqasearch.selectors.selector import Selector, Wants

LIMIT = 20_000
"""The largest number of masks; more are refused."""

_CHOICE = 64
"""Number of masks that are wanted at once: neighbours in the order, which share most layers."""


class ExhaustiveSelector(Selector):
    """All masks at the budget; those that convert the first layers far come first.

    Neighbours in this order share most of their first layers, which suits a scorer that keeps
    hidden states.

    Raises:
        UserError: more than ``LIMIT`` masks.
    """

    name: ClassVar[str] = "exhaustive"
    summary: ClassVar[str] = f"all masks at the budget, where there are at most {LIMIT:,}"
    ends: ClassVar[bool] = True

    def __init__(self, space: SearchSpace, seed: int = 0) -> None:
        super().__init__(space, seed)
        if (n_masks := self._at_budget.n) > LIMIT:
            raise UserError(
                f"there are {n_masks:,} masks at the budget, more than the {LIMIT:,} that the "
                "selector 'exhaustive' takes on; choose 'greedy'"
            )

    def expected_trials(self) -> int:
        """Every mask at the budget."""
        return self._at_budget.n

    def most_invalid_in_a_row(self) -> int:
        """At least one more than there are masks with a level of layer 0.

        All masks with the same level of layer 0 come together.
        """
        others = frozenset((0, level) for level in range(1, self.space.n_levels + 1))
        without_first = masks_of_size(self.space, self.space.least, others).n
        return max(super().most_invalid_in_a_row(), self._at_budget.n - without_first + 1)

    def wants(self, history: History) -> Wants:
        """The first unseen masks, in any order, since all of them will be scored."""
        if (ended := self.none_left(history)) is not None:
            return ended
        left = (mask for mask in self._masks if mask not in history.taken)
        first = [*itertools.islice(left, _CHOICE)]
        return Wants(first, first)

    @property
    def _at_budget(self) -> MasksOfSize:
        return masks_of_size(self.space, self.space.least)

    @cached_property
    def _masks(self) -> list[LayerMask]:
        return [*self._at_budget]
