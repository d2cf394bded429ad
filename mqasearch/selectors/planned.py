"""Selectors that follow a plan: an algorithm written as though losses cost nothing."""

import abc
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import TypeVar

from mqasearch.errors import UserError
from mqasearch.mask import LayerMask
from mqasearch.search_space import SearchSpace
from mqasearch.selectors.history import History, MaskTrial
from mqasearch.selectors.selector import Selector, Wants

Losses = Mapping[LayerMask, float]
"""Mask → loss. In a request: the masks needed, most wanted first, each with the loss expected of it
(``inf`` if none is expected: the plan then assumes that the mask will not matter)."""

T = TypeVar("T")
Subplan = Generator[Losses, Losses, T]
"""Yields requests, is sent the losses of the requested masks, and returns its conclusion."""

Plan = Subplan[None]


class PlannedSelector(Selector):
    """A selector whose masks follow from the losses of earlier ones.

    A subclass implements :meth:`plan` only, as a generator that yields the masks whose losses it
    needs next and is sent these losses. The generator is not kept: at every proposal it is run
    again from the start on the losses that the study knows, up to the first unknown one. So there
    is no leader and no state to lose. If a worker dies, the next proposal finds its mask missing.

    **Several workers.** The masks of one request are independent and equally wanted. Once all masks
    of a request are running, the plan is continued with the losses it expects of them, to find out
    what it would ask for next; these masks are wanted ahead of time. Expected losses decide only
    what is scored early, never what is chosen: the plan is sent nothing but the losses of the masks
    it asks for. Masks at the budget are never wanted ahead, so the study ends with the same masks
    at the budget, and hence with the same best one, as with one worker.

    If the plan ended without a valid mask at the budget, random ones are wanted. If a mask is to be
    scored although none is wanted, it is a random one below the budget, which does not affect the
    result.
    """

    ends = True

    @abc.abstractmethod
    def plan(self) -> Plan:
        """The algorithm, from the start; it ends when nothing further is needed.

        It must be deterministic: what it yields depends only on the losses it is sent. The loss of
        an invalid mask is ``inf``. A request must not be empty.
        """

    def wants(self, history: History) -> Wants:
        """The missing masks of the request that the plan waits for, else one of a later request."""
        known, running = _split(history)
        certain: list[LayerMask] | None = None
        for missing in self._missing(known):
            wanted = [mask for mask in missing if mask not in running]
            if certain is None:
                certain = wanted
            else:
                wanted = [mask for mask in wanted if not self.space.is_at_budget(mask)][:1]
            if wanted:
                return Wants(wanted, certain)
        if certain is not None:
            return Wants()
        if self._has_ended(history):
            return Wants(done=True)
        rng = self.generator(history)
        return self.none_left(history) or Wants((self.random_mask(history, rng),))

    def spare(self, history: History) -> LayerMask:
        """A random mask below the budget."""
        return self.random_probe(history, self.generator(history))

    def _has_ended(self, history: Sequence[MaskTrial]) -> bool:
        """Whether a plan that asks for nothing more has come to a mask at the budget."""
        return any(
            trial.state != "invalid" and self.space.is_at_budget(trial.mask) for trial in history
        )

    def least_trials(self) -> int:
        """As many as the plan takes if layers do harm independently of each other."""
        seen = {LayerMask.empty(self.n_layers)}
        plan = self.plan()
        request = next(plan, None)
        while request:
            for mask in request:
                seen.add(mask)
                if self.space.is_at_budget(mask):
                    return len(seen)
            request = _sent(plan, {mask: _independent(mask) for mask in request})
        return len(seen)

    def _missing(self, known: Mapping[LayerMask, float]) -> Iterator[list[LayerMask]]:
        """The unknown masks of each request that has any, in the order of the plan.

        All but the first of these requests are based on expected losses.
        """
        plan = self.plan()
        request = next(plan, None)
        while request:
            missing = [mask for mask in request if mask not in known]
            if missing:
                yield missing
            losses = {mask: known.get(mask, expected) for mask, expected in request.items()}
            request = _sent(plan, losses)


def check_one_level(name: str, space: SearchSpace) -> None:
    """Check the space of a selector that only decides whether a layer is converted.

    Raises:
        UserError: a layer may have one of several numbers of KV heads.
    """
    if space.n_levels > 1:
        raise UserError(
            f"{name!r} does not choose among several kv_heads; give one number, or choose "
            "'sensitivity', 'greedy' or 'gp'"
        )


def _sent(plan: Plan, losses: Losses) -> Losses | None:
    """The plan's next request; None if it has ended."""
    try:
        return plan.send(losses)
    except StopIteration:
        return None


def _independent(mask: LayerMask) -> float:
    """A loss of masks whose layers do harm independently of each other."""
    return float(sum(layer * level for layer, level in enumerate(mask)))


def _split(history: Sequence[MaskTrial]) -> tuple[dict[LayerMask, float], set[LayerMask]]:
    """The losses of the finished masks, and the running masks."""
    known = {trial.mask: trial.loss for trial in history if trial.finished}
    return known, {trial.mask for trial in history if not trial.finished}
