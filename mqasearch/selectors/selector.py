"""What a selector is: a function of a study's history that says which masks it wants scored."""

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mqasearch.errors import UserError
from mqasearch.mask import LayerMask
from mqasearch.selectors.diverging import diverging
from mqasearch.selectors.draw import n_left, random_unseen
from mqasearch.selectors.history import History


@dataclass(frozen=True, slots=True)
class Wants:
    """What a selector would have scored next.

    Attributes:
        masks: equally wanted ones, of which any may be scored next; none of them is finished or
            running. Empty: nothing can be told before a running mask is finished, or nothing is
            left.
        certain: masks that will be wanted whatever the losses of those not yet finished turn out
            to be, so that they may be scored in any order or together; none of them is finished or
            running.
        done: nothing is left, and nothing is running that could change that.
    """

    masks: Sequence[LayerMask] = ()
    certain: Sequence[LayerMask] = ()
    done: bool = False


class Selector(abc.ABC):
    """Base class of all selectors. A selector writes :meth:`wants`.

    **A function of the history.** The same history gives the same answer, in any process and at any
    time: an instance holds its settings and nothing that it learned. So any worker may die, join
    late or be a thread among others, and nothing is lost with it. Randomness follows from the
    selector's seed and the number of the trial to be (:meth:`generator`).

    **Who scores what.** A selector says what it wants, and somebody else decides which worker
    scores which mask. It need not wait: it is asked again with a longer history.

    Subclasses set :attr:`name` and :attr:`summary`, and take their own settings as keyword-only
    arguments with a default and one of the types ``bool``, ``int``, ``float`` and ``Literal[...]``
    of strings; the study file and the command line find them there.

    Example:
        >>> from mqasearch.selectors import History, MaskTrial, selector_of
        >>> selector = selector_of("sensitivity", n_layers=3, n_converted=2)
        >>> [str(mask) for mask in selector.wants(History()).masks]
        ['100', '010', '001']

    Args:
        n_layers: layers of the model.
        n_converted: layers that a mask at the budget converts, 1 to ``n_layers``.
        seed: ≥ 0.

    Raises:
        UserError: a number out of range.
    """

    name: ClassVar[str]
    """How a study file calls it."""
    summary: ClassVar[str]
    """One line for the list of selectors."""
    ends: ClassVar[bool] = False
    """Whether it has a plan of its own that ends (else the number of trials ends the study)."""

    counted: ClassVar[str | None] = None
    """Of a plan that ends with a number of masks: the parameter that says how many."""

    def __init__(self, n_layers: int, n_converted: int, seed: int = 0) -> None:
        if not 1 <= n_converted <= n_layers:
            raise UserError(
                f"a budget of {n_converted} layers does not fit a model of {n_layers}; "
                f"choose 1 to {n_layers}"
            )
        if seed < 0:
            raise UserError(f"seed {seed} is negative; choose 0 or more")
        self.n_layers = n_layers
        self.n_converted = n_converted
        self.seed = seed

    @abc.abstractmethod
    def wants(self, history: History) -> Wants:
        """What is to be scored next.

        Masks that are wanted convert at most ``n_converted`` layers.

        Args:
            history: every trial of the study that counts, running ones included, by number.
        """

    def spare(self, history: History) -> LayerMask:
        """A mask for somebody who scores one although none is wanted: a random one at the budget.

        Unseen as long as any is. Below the budget for a selector whose end another mask at the
        budget would change.
        """
        return self.random_mask(history, self.generator(history))

    def generator(self, history: History) -> np.random.Generator:
        """The only source of randomness: follows from the seed and the number of the next trial."""
        return np.random.default_rng((self.seed, history.number))

    def none_left(self, history: History) -> Wants | None:
        """What to answer if no mask at the budget is unseen that may have a score; else None.

        The study is done when the last one is finished: its worker may still die.
        """
        shunned = self.shunned(history)
        if n_left(self.n_layers, self.n_converted, history.taken, shunned):
            return None
        return Wants(done=all(trial.finished for trial in history))

    def shunned(self, history: History) -> frozenset[int]:
        """Layers that have no score alone, and hence, it seems, none in any mask.

        None of them if too few other layers are left for a mask at the budget, or if every mask at
        the budget that does without them has no score either.
        """
        found = diverging(history)
        if self.n_layers - len(found) < self.n_converted:
            return frozenset()
        if found and not n_left(self.n_layers, self.n_converted, history.taken, found):
            at_budget = [t for t in history if t.mask.n_converted == self.n_converted]
            if all(trial.state == "invalid" for trial in at_budget):
                return frozenset()
        return found

    def expected_trials(self) -> int | None:
        """About how many trials its plan takes, the original model's among them; a plan may turn
        out shorter or longer. None without a plan that ends."""
        return None

    def most_invalid_in_a_row(self) -> int:
        """How many masks in a row may lack a score because of one layer, or of each layer alone.

        A layer that has no score when it is converted spoils every mask that converts it. Selectors
        that begin with single layers meet ``n_layers`` masks before the first pair; some layers may
        well be fine, and if none is, no larger mask will be.
        """
        return max(10, self.n_layers + 1)

    def least_trials(self) -> int:
        """Trials up to the first mask at the budget at best, the original model's among them."""
        return 2

    def random_mask(self, history: History, rng: np.random.Generator) -> LayerMask:
        """A random mask at the budget, unseen as long as any is.

        When all are taken: unseen below the budget, the largest first; then the same with layers
        that are shunned; when nothing at all is left, a repetition.
        """
        return self._random_unseen(range(self.n_converted, -1, -1), history, rng)

    def random_probe(self, history: History, rng: np.random.Generator) -> LayerMask:
        """As :meth:`random_mask`, but below the budget as long as anything there is unseen."""
        sizes = [*range(self.n_converted - 1, -1, -1), self.n_converted]
        return self._random_unseen(sizes, history, rng)

    def _random_unseen(
        self, sizes: Sequence[int], history: History, rng: np.random.Generator
    ) -> LayerMask:
        for without in dict.fromkeys((self.shunned(history), frozenset[int]())):
            for size in sizes:
                mask = random_unseen(self.n_layers, size, history.taken, rng, without)
                if mask is not None:
                    return mask
        valid = {t.mask for t in history if t.state != "invalid"}
        repeated = sorted((m for m in valid if m.n_converted <= self.n_converted), key=str)
        at_budget = [mask for mask in repeated if mask.n_converted == self.n_converted]
        choice = at_budget or repeated or [LayerMask.empty(self.n_layers)]
        return choice[rng.integers(len(choice))]
