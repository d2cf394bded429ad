"""Random masks at the budget."""

from typing import ClassVar

from mqasearch.selectors.diverging import suspect
from mqasearch.selectors.history import History
from mqasearch.selectors.selector import Selector, Wants


class RandomSelector(Selector):
    """Every unseen mask at the budget is equally likely; what any search must beat.

    If one mask after the other has no score, the layers are tried alone, and those that have none
    are left out.
    """

    name: ClassVar[str] = "random"
    summary: ClassVar[str] = "random masks at the budget, none twice"

    def wants(self, history: History) -> Wants:
        """A random unseen mask at the budget, or a layer that may be at fault."""
        if (ended := self.none_left(history)) is not None:
            return ended
        alone = suspect(history, self.n_layers, self.n_converted)
        return Wants((alone or self.random_mask(history, self.generator(history)),))
