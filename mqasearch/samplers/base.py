"""The seam between Optuna and a selector: a sampler that proposes whole masks."""

import abc
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from mqasearch.errors import UserError
from mqasearch.mask import LayerMask
from mqasearch.samplers.diverging import diverging
from mqasearch.samplers.draw import n_left, random_unseen, repaired
from mqasearch.samplers.history import (
    MASK_KEY,
    History,
    HistoryReader,
    MaskTrial,
    mask_of,
    taken,
)
from mqasearch.samplers.space import param_name, search_space

_TRIES = 5

Preference = Callable[[Sequence[LayerMask]], LayerMask]
"""Chooses one of several masks, at least one of which is given."""


def first(masks: Sequence[LayerMask]) -> LayerMask:
    """The preference of somebody who has none."""
    return masks[0]


@runtime_checkable
class MaskRegister(Protocol):
    """A storage that settles by itself which of several trials has a mask."""

    def publish_mask(self, trial_id: int, mask: str, since: int) -> bool:
        """Write a trial's mask unless a trial numbered ``since`` or more has it; whether it did."""
        ...


class Outlook(Enum):
    """What a selector would do with another trial."""

    READY = "ready"
    """There is a mask to propose now."""
    WAIT = "wait"
    """Whatever comes next depends on trials that are running."""
    DONE = "done"
    """Nothing is left to propose."""


class MaskSampler(BaseSampler, abc.ABC):
    """Base class of all selectors. A selector writes :meth:`propose`; the rest is done here.

    **Lifetime.** A worker makes one instance per study and keeps it. For every trial:

    1. :meth:`outlook`, asked by the worker before it starts a trial, as often as it likes. It gets
       the history and touches nothing. READY starts a trial, WAIT is asked again later, DONE ends
       the study for this worker.
    2. :meth:`before_trial`, by Optuna, once. A trial enqueued with all its parameters gets its
       mask's attribute here and is never asked for a proposal: what is enqueued is run as it is,
       whatever the budget.
    3. :meth:`infer_relative_search_space` and :meth:`sample_relative`, by Optuna, once, when the
       objective asks for the first layer. :meth:`sample_relative` reads the history, calls
       :meth:`propose` and writes the mask to the trial (``mqasearch:mask``) so that every other
       worker sees it from then on. If another trial turns out to have written the same mask
       meanwhile, it proposes again: two workers that ask at once get two masks.
    4. :meth:`sample_independent`, by Optuna, for parameters that are not layers: drawn at random.

    **Memory.** The study is the only one. Instances hold their settings and a cache of finished
    trials, so any worker may die, join late or be a thread among others. Trials failed without
    ``mqasearch:invalid`` are no part of a history, hence their masks are proposed again.

    **Randomness.** The generator of a proposal is made from (seed, trial number): the same history
    gives the same mask in any process, and workers that share a seed never share a stream.

    Subclasses set :attr:`name` and :attr:`summary`, and take their own settings as keyword-only
    arguments with a default and one of the types ``bool``, ``int``, ``float`` and ``Literal[...]``
    of strings; the study file and the command line find them there.

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
        self.prefer: Preference = first
        """Where several masks are equally wanted: which one a worker takes, the one that is
        cheapest for it, say. It decides an order, never which masks are scored."""
        self._foreign = RandomSampler(seed)
        self._reader = HistoryReader(n_layers)

    @abc.abstractmethod
    def propose(self, history: Sequence[MaskTrial], rng: np.random.Generator) -> LayerMask:
        """The next mask to score.

        Called once per trial, only for trials that were not enqueued. Converts at most
        ``n_converted`` layers, and is neither finished nor running as long as any other mask is
        left.

        Args:
            history: every other trial of the study, running ones included, by number.
            rng: the only source of randomness.
        """

    def outlook(self, history: Sequence[MaskTrial]) -> Outlook:
        """What :meth:`propose` would do now.

        Here: READY as long as a mask at the budget is unseen that may have a score, then WAIT
        until the last one is finished (its worker may still die), then DONE.
        """
        shunned = self.shunned(history)
        if n_left(self.n_layers, self.n_converted, taken(history), shunned):
            return Outlook.READY
        return Outlook.WAIT if any(not trial.finished for trial in history) else Outlook.DONE

    def shunned(self, history: Sequence[MaskTrial]) -> frozenset[int]:
        """Layers that have no score alone, and hence none in any mask.

        None of them where too few other layers are left for a mask at the budget.
        """
        found = diverging(history)
        return found if self.n_layers - len(found) >= self.n_converted else frozenset()

    def certain(self, history: Sequence[MaskTrial]) -> Sequence[LayerMask]:
        """Masks that will be proposed whatever the losses of those not yet finished turn out to be,
        so that they may be scored in any order or together; none of them finished or running.

        Here: none.
        """
        return ()

    def least_trials(self) -> int:
        """Trials up to the first mask at the budget at best, the original model's among them."""
        return 2

    def history(self, study: Study, trials: Sequence[FrozenTrial] | None = None) -> History:
        """All that the study knows about masks; cheap, and current at every call.

        Args:
            study: with this sampler.
            trials: all of its trials by number, where the caller has just read them.
        """
        return self._reader.read(study, trials)

    def random_mask(self, history: Sequence[MaskTrial], rng: np.random.Generator) -> LayerMask:
        """A random mask at the budget, unseen as long as any is.

        When all are taken: unseen below the budget, the largest first; then the same with layers
        that are shunned; when nothing at all is left, a repetition.
        """
        return self._random_unseen(range(self.n_converted, -1, -1), history, rng)

    def random_probe(self, history: Sequence[MaskTrial], rng: np.random.Generator) -> LayerMask:
        """As :meth:`random_mask`, but below the budget as long as anything there is unseen."""
        sizes = [*range(self.n_converted - 1, -1, -1), self.n_converted]
        return self._random_unseen(sizes, history, rng)

    def _random_unseen(
        self, sizes: Sequence[int], history: Sequence[MaskTrial], rng: np.random.Generator
    ) -> LayerMask:
        seen = taken(history)
        for without in dict.fromkeys((self.shunned(history), frozenset[int]())):
            for size in sizes:
                mask = random_unseen(self.n_layers, size, seen, rng, without)
                if mask is not None:
                    return mask
        valid = {t.mask for t in history if t.state != "invalid"}
        repeated = sorted((m for m in valid if m.n_converted <= self.n_converted), key=str)
        at_budget = [mask for mask in repeated if mask.n_converted == self.n_converted]
        choice = at_budget or repeated or [LayerMask.empty(self.n_layers)]
        return choice[rng.integers(len(choice))]

    def draw(
        self,
        study: Study,
        trial: FrozenTrial,
        history: Sequence[MaskTrial],
        rng: np.random.Generator,
    ) -> LayerMask:
        """:meth:`propose`, for a selector that wraps another Optuna sampler and needs the study."""
        return self.propose(history, rng)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Publish the mask of an enqueued trial."""
        mask = mask_of(trial, self.n_layers)
        if mask is not None and MASK_KEY not in trial.user_attrs:
            self._publish(study, trial, mask)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """The layers' parameters, always."""
        return search_space(self.n_layers)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The proposed mask as parameters; anything but layers is drawn at random.

        Raises:
            ValueError: the study has several objectives.
        """
        self._raise_error_if_multi_objective(study)
        names = [param_name(layer) for layer in range(self.n_layers)]
        if not search_space.keys() <= set(names):
            return {
                name: self._foreign.sample_independent(study, trial, name, distribution)
                for name, distribution in search_space.items()
            }
        mask = mask_of(trial, self.n_layers) or self._proposed(study, trial)
        flags = dict(zip(names, mask, strict=True))
        return {name: flags[name] for name in search_space}

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """A parameter that is no layer of ours, at random.

        Raises:
            ValueError: the study has several objectives.
        """
        self._raise_error_if_multi_objective(study)
        return self._foreign.sample_independent(study, trial, param_name, param_distribution)

    def reseed_rng(self) -> None:
        """Masks need no reseeding (see Randomness); foreign parameters do."""
        self._foreign.reseed_rng()

    def _proposed(self, study: Study, trial: FrozenTrial) -> LayerMask:
        rng = np.random.default_rng((self.seed, trial.number))
        fixed = _fixed_flags(trial, self.n_layers)
        history = self._reader.read(study, without=trial.number)
        for _ in range(_TRIES):
            mask = self.draw(study, trial, history, rng)
            if fixed:
                mask = repaired(mask, self.n_converted, rng, fixed=fixed)
            if mask in history.taken:  # nothing else is left
                break
            if self._publish_first(study, trial, mask, history):
                return mask
            history = self._reader.read(study, without=trial.number)
        self._publish(study, trial, mask)
        return mask

    def _publish_first(
        self, study: Study, trial: FrozenTrial, mask: LayerMask, history: History
    ) -> bool:
        """Publish a mask that is new to ``history``. False if another trial has it by now."""
        register = study._storage
        if isinstance(register, MaskRegister):
            return register.publish_mask(trial._trial_id, str(mask), history.n_settled)
        self._publish(study, trial, mask)
        now = self._reader.read(study, without=trial.number)
        return mask not in now.taken or all(
            other.mask != mask or other.number > trial.number for other in now
        )

    def _publish(self, study: Study, trial: FrozenTrial, mask: LayerMask) -> None:
        # A FrozenTrial cannot write itself; Optuna's own samplers go through the storage too.
        study._storage.set_trial_user_attr(trial._trial_id, MASK_KEY, str(mask))


def _fixed_flags(trial: FrozenTrial, n_layers: int) -> Mapping[int, bool]:
    """Layers whose flag an enqueued trial gives."""
    params = trial.system_attrs.get("fixed_params", {})
    names = {param_name(layer): layer for layer in range(n_layers)}
    return {names[name]: bool(value) for name, value in params.items() if name in names}
