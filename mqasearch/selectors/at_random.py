"""Random masks at the budget."""

from typing import ClassVar

from mqasearch.selectors.diverging import suspect
from mqasearch.selectors.history import History
from mqasearch.selectors.selector import Selector, Wants


class RandomSelector(Selector):
    """Draws each unseen mask at the budget with equal probability: the baseline of every search.

    If several masks in a row have no score, the layers are tried alone, and those that have no
    score alone are left out.
    """

    name: ClassVar[str] = "random"
    summary: ClassVar[str] = "random masks at the budget, none twice"

    def wants(self, history: History) -> Wants:
        """A random unseen mask at the budget, or a single layer that may be at fault."""
        if (ended := self.none_left(history)) is not None:
            return ended
        alone = suspect(history, self.space)
        return Wants((alone or self.random_mask(history, self.generator(history)),))
