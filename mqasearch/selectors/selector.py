"""What a selector is: a function of a study's history that says which masks it wants scored."""

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mqasearch.errors import UserError
from mqasearch.mask import LayerMask
from mqasearch.search_space import SearchSpace
from mqasearch.selectors.diverging import diverging
from mqasearch.selectors.draw import n_left, random_unseen
from mqasearch.selectors.history import History
from mqasearch.selectors.masks_of_size import NOTHING, Level, masks_of_size


@dataclass(frozen=True, slots=True)
class Wants:
    """Which masks a selector wants scored next.

    Attributes:
        masks: masks that are equally wanted; any of them may be scored next, and none is finished
            or running. Empty if the selector must wait for a running mask, or if nothing is left.
        certain: masks that will be wanted whatever losses the unfinished masks turn out to have, so
            that they may be scored in any order or together; none of them is finished or running.
        done: whether nothing is left, and no running mask could change that.
    """

    masks: Sequence[LayerMask] = ()
    certain: Sequence[LayerMask] = ()
    done: bool = False


class Selector(abc.ABC):
    """Base class of all selectors. A subclass implements :meth:`wants`.

    **A function of the history.** The same history gives the same answer, in any process and at any
    time: an instance holds its settings and nothing that it learned. So a worker may die, join late
    or be one of several threads, and nothing is lost. Randomness follows from the selector's seed
    and the number of the next trial (:meth:`generator`).

    **Who scores what.** A selector says what it wants, and its caller decides which worker scores
    which mask. A selector never waits: it is asked again with a longer history.

    Subclasses set :attr:`name` and :attr:`summary`, and take their own settings as keyword-only
    arguments with a default and one of the types ``bool``, ``int``, ``float`` and ``Literal[...]``
    of strings; the study file and the command line find them there.

    Example:
        >>> from mqasearch.search_space import SearchSpace
        >>> from mqasearch.selectors import History, MaskTrial, selector_of
        >>> selector = selector_of("sensitivity", SearchSpace(n_layers=3, least=2))
        >>> [str(mask) for mask in selector.wants(History()).masks]
        ['100', '010', '001']

    Args:
        space: the masks that may be proposed, and the budget.
        seed: ≥ 0.

    Raises:
        UserError: a number out of range.
    """

    name: ClassVar[str]
    """The selector's name in a study file."""
    summary: ClassVar[str]
    """One line for the list of selectors."""
    ends: ClassVar[bool] = False
    """Whether it has a plan of its own that ends (if not, the number of trials ends the study)."""

    counted: ClassVar[str | None] = None
    """If the plan ends after a number of masks: the parameter that says how many; else None."""

    def __init__(self, space: SearchSpace, seed: int = 0) -> None:
        if seed < 0:
            raise UserError(f"seed {seed} is negative; choose 0 or more")
        self.space = space
        self.n_layers = space.n_layers
        self.seed = seed

    @abc.abstractmethod
    def wants(self, history: History) -> Wants:
        """What is to be scored next.

        Masks that are wanted are at the budget or save less.

        Args:
            history: every trial of the study that counts, running ones included, by number.
        """

    def spare(self, history: History) -> LayerMask:
        """A random mask at the budget, for a caller that scores one although none is wanted.

        It is an unseen one if any is left. It is below the budget if another mask at the budget
        would change when the selector ends.
        """
        return self.random_mask(history, self.generator(history))

    def generator(self, history: History) -> np.random.Generator:
        """The only source of randomness: follows from the seed and the number of the next trial."""
        return np.random.default_rng((self.seed, history.number))

    def none_left(self, history: History) -> Wants | None:
        """The answer if every mask at the budget that may have a score has been seen; else None.

        The study is done only when the last mask is finished, since its worker may still die.
        """
        shunned = self.shunned(history)
        if n_left(self.space, self.space.least, history.taken, shunned):
            return None
        return Wants(done=all(trial.finished for trial in history))

    def shunned(self, history: History) -> frozenset[Level]:
        """Levels of layers that have no score alone, and hence presumably none in any mask.

        Empty if no mask at the budget is without them, or if none of these masks has a score
        either.
        """
        found = diverging(history)
        if not found or not masks_of_size(self.space, self.space.least, found).n:
            return frozenset()
        if not n_left(self.space, self.space.least, history.taken, found):
            at_budget = [trial for trial in history if self.space.is_at_budget(trial.mask)]
            if all(trial.state == "invalid" for trial in at_budget):
                return frozenset()
        return found

    def expected_trials(self) -> int | None:
        """About how many trials its plan takes, including the original model's; a plan may turn out
        shorter or longer. None if it has no plan that ends."""
        return None

    def most_invalid_in_a_row(self) -> int:
        """How many masks in a row may lack a score because of one layer, or of single layers.

        If a layer has no score when it is converted, no mask that converts it has one. Selectors
        that begin with single layers score one mask for each layer and level before the first pair.
        Some of these may well have a score; if none has one, no larger mask will have one.
        """
        return max(10, self.n_layers * self.space.n_levels + 1)

    def least_trials(self) -> int:
        """The fewest trials up to the first mask at the budget, including the original model's."""
        return 2

    def random_mask(self, history: History, rng: np.random.Generator) -> LayerMask:
        """A random mask at the budget, an unseen one if any is left.

        If all are taken, it is an unseen mask below the budget, of the largest size that is left;
        then the same with levels that are shunned; if nothing at all is left, a mask is repeated.
        """
        return self._random_unseen(range(self.space.least, -1, -1), history, rng)

    def random_probe(self, history: History, rng: np.random.Generator) -> LayerMask:
        """Like :meth:`random_mask`, but below the budget if an unseen mask is left there."""
        sizes = [*range(self.space.least - 1, -1, -1), self.space.least]
        return self._random_unseen(sizes, history, rng)

    def _random_unseen(
        self, sizes: Sequence[int], history: History, rng: np.random.Generator
    ) -> LayerMask:
        for without in dict.fromkeys((self.shunned(history), NOTHING)):
            for size in sizes:
                mask = random_unseen(self.space, size, history.taken, rng, without)
                if mask is not None:
                    return mask
        valid = {t.mask for t in history if t.state != "invalid"}
        space = self.space
        repeated = sorted((mask for mask in valid if space.size(mask) <= space.least), key=str)
        at_budget = [mask for mask in repeated if space.is_at_budget(mask)]
        choice = at_budget or repeated or [LayerMask.empty(self.n_layers)]
        return choice[rng.integers(len(choice))]
