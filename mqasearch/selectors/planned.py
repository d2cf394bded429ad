"""Selectors that follow a plan: an algorithm written as though losses cost nothing."""

import abc
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import TypeVar

from mqasearch.mask import LayerMask
from mqasearch.selectors.history import History, MaskTrial
from mqasearch.selectors.selector import Selector, Wants

Losses = Mapping[LayerMask, float]
"""Mask → loss. In a request: the masks needed, most wanted first, each with the loss expected of
it (``inf`` where nothing is expected, which means: assume that it will not matter)."""

T = TypeVar("T")
Subplan = Generator[Losses, Losses, T]
"""Yields requests, is sent the losses of the masks requested, returns what it concludes."""

Plan = Subplan[None]


class PlannedSelector(Selector):
    """A selector whose masks follow from the losses of earlier ones.

    A subclass writes :meth:`plan` alone, as a generator that yields the masks whose losses it
    needs next and is sent these losses. Nobody keeps the generator: at every proposal it is run
    again from the start on the losses that the study knows, up to the first it does not know. So
    there is no leader and no state to lose, and a worker that dies leaves a mask that the next
    proposal finds missing.

    **Several workers.** The masks of one request are independent and equally wanted. Once all of a
    request are running, the plan is run on with the losses it expects of them, to see what it would
    ask for next, and that is wanted ahead of its time. Expected losses decide only what is scored
    early, never what is chosen: the plan is sent nothing but the losses of the masks it asks for.
    Masks at the budget are never wanted ahead, so the study ends with the same masks at the budget,
    hence the same best one, as with one worker.

    If the plan ended without a valid mask at the budget, random ones are wanted. A mask that is
    scored although none is wanted is a random one below the budget, which disturbs nothing.
    """

    ends = True

    @abc.abstractmethod
    def plan(self) -> Plan:
        """The algorithm, from the start; it ends when nothing further is needed.

        Deterministic: what it yields depends on the losses it is sent alone. The loss of an
        invalid mask is ``inf``. A request must not be empty.
        """

    def wants(self, history: History) -> Wants:
        """What is missing of the request that the plan waits for, else one mask ahead of it."""
        known, running = _split(history)
        certain: list[LayerMask] | None = None
        for missing in self._missing(known):
            wanted = [mask for mask in missing if mask not in running]
            if certain is None:
                certain = wanted
            else:
                wanted = [mask for mask in wanted if mask.n_converted != self.n_converted][:1]
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
        """Of a plan that asks for nothing more: whether it has come to a mask at the budget."""
        return any(
            trial.state != "invalid" and trial.mask.n_converted == self.n_converted
            for trial in history
        )

    def least_trials(self) -> int:
        """As many as the plan takes where layers do harm independently of each other."""
        seen = {LayerMask.empty(self.n_layers)}
        plan = self.plan()
        request = next(plan, None)
        while request:
            for mask in request:
                seen.add(mask)
                if mask.n_converted == self.n_converted:
                    return len(seen)
            request = plan.send({mask: float(sum(mask.layers)) for mask in request})
        return len(seen)

    def _missing(self, known: Mapping[LayerMask, float]) -> Iterator[list[LayerMask]]:
        """The unknown masks of each request that has some, in the order of the plan.

        Requests after the first one yielded rest on expected losses.
        """
        plan = self.plan()
        request = next(plan, None)
        while request:
            missing = [mask for mask in request if mask not in known]
            if missing:
                yield missing
            losses = {mask: known.get(mask, expected) for mask, expected in request.items()}
            try:
                request = plan.send(losses)
            except StopIteration:
                return


def _split(history: Sequence[MaskTrial]) -> tuple[dict[LayerMask, float], set[LayerMask]]:
    """The losses of what is finished, and what is running."""
    known = {trial.mask: trial.loss for trial in history if trial.finished}
    return known, {trial.mask for trial in history if not trial.finished}
