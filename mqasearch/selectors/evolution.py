"""Mutations of the best mask so far."""

from typing import ClassVar

from mqasearch.errors import UserError
from mqasearch.mask import LayerMask
from mqasearch.search_space import SearchSpace
from mqasearch.selectors.diverging import suspect
from mqasearch.selectors.draw import random_neighbour, repaired
from mqasearch.selectors.history import History
from mqasearch.selectors.selector import Selector, Wants

_NOBODY: frozenset[LayerMask] = frozenset()


class EvolutionSelector(Selector):
    """Each mask is the best mask so far with a few switches of levels.

    A switch gives one layer another level, and others take steps until the mask is at the budget
    again; with one level, one layer is taken out and another one taken in. That is the search of
    EvoPress (Sieberling et al. 2024, arXiv 2410.14649), with one elite and without generations,
    because workers finish their masks at different times: a mutation starts from whatever mask is
    best by then. As there, the number of switches is the smaller one of two random numbers, which
    favours few.

    The first mask converts all layers to the same level as far as the budget allows, and further
    ones at random. If several masks in a row have no score, the layers are tried alone, and levels
    that have no score alone are left out.

    Args:
        space: the masks that may be proposed, and the budget.
        seed: ≥ 0.
        most_switches: the most switches from one mask to the next, ≥ 1.

    Raises:
        UserError: ``most_switches`` below 1.
    """

    name: ClassVar[str] = "evolution"
    summary: ClassVar[str] = "the best mask so far with a few switches (EvoPress), as a baseline"

    def __init__(self, space: SearchSpace, seed: int = 0, *, most_switches: int = 3) -> None:
        super().__init__(space, seed)
        if most_switches < 1:
            raise UserError(f"most_switches {most_switches} is too few; choose 1 or more")
        self.most_switches = most_switches

    def wants(self, history: History) -> Wants:
        """A mutation of the best mask, which was not seen before."""
        if (ended := self.none_left(history)) is not None:
            return ended
        return Wants((suspect(history, self.space) or self._mutated(history),))

    def _mutated(self, history: History) -> LayerMask:
        rng = self.generator(history)
        shunned = self.shunned(history)
        scored = [trial for trial in history if trial.state == "complete"]
        if not scored:
            first = repaired(self.space, self._even(), rng, without=shunned)
            is_new = self.space.is_at_budget(first) and first not in history.taken
            return first if is_new else self.random_mask(history, rng)
        mask = min(scored, key=lambda trial: (trial.loss, trial.number)).mask
        n_switches = int(min(rng.integers(1, self.most_switches + 1, size=2)))
        for _ in range(n_switches - 1):
            mask = random_neighbour(self.space, mask, _NOBODY, rng, shunned) or mask
        mutated = random_neighbour(self.space, mask, history.taken, rng, shunned)
        return mutated or self.random_mask(history, rng)

    def _even(self) -> LayerMask:
        """The mask of one level in all layers that comes nearest to the budget from below."""
        levels = [n for n, saving in enumerate(self.space.savings, 1) if self._all(saving)]
        return LayerMask((max(levels, default=0),) * self.n_layers)

    def _all(self, saving: int) -> bool:
        return saving * self.n_layers <= self.space.least
