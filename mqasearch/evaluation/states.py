"""Hidden states kept from one mask to the next, within a budget of bytes.

Two masks that agree on the first layers have the same hidden states there, so the second starts
where they part.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mqasearch.evaluation.batches import Plan
from mqasearch.mask import KVHeads

_PATHS_IN_BUDGET = 4
"""A model's boundaries are thinned out until this many masks' worth of them fit."""


@dataclass(slots=True, eq=False)
class _Kept:
    """States at one boundary: what a plan's batches hold after ``len(prefix)`` blocks.

    Attributes:
        n_bytes: of all batches.
        worth: what it is dropped by, least first.
        uses: times that a mask started here.
        states: one tensor a batch; incomplete while the first mask is running.
    """

    n_bytes: int
    worth: float
    uses: int = 0
    states: list[Tensor] = field(default_factory=list)


class StateStore:
    """States by plan and by the KV heads of all layers before them.

    What is dropped first is what was started from least often, with old merits fading: greedy dual
    size frequency (Cherkasova 1998), where cost and size cancel, since the work that a boundary
    saves and the bytes it takes are both proportional to the tokens. Each entry is worth the
    clock at its last use plus its uses; the clock is the worth of what was dropped last.

    Attributes:
        budget: bytes; never exceeded.
        used: bytes kept, and promised to a run under way.
    """

    def __init__(self, budget: int, n_layers: int, device: torch.device | None = None) -> None:
        """
        Args:
            budget: bytes.
            n_layers: blocks of the model.
            device: to keep the states on; None = where the model makes them.
        """
        self.budget = budget
        self.used = 0
        self._n_layers = n_layers
        self._device = device
        self._clock = 0.0
        self._kept: dict[tuple[Plan, KVHeads], _Kept] = {}

    def deepest(self, plan: Plan, kv_heads: KVHeads) -> int:
        """The last boundary up to which something is kept for this plan and these KV heads."""
        for boundary in range(len(kv_heads), 0, -1):
            kept = self._kept.get((plan, kv_heads[:boundary]))
            if kept is not None and len(kept.states) == len(plan.batches):
                return boundary
        return 0

    def states(self, plan: Plan, prefix: KVHeads) -> Sequence[Tensor]:
        """What is kept at a boundary, one tensor a batch.

        Raises:
            KeyError: nothing is.
        """
        kept = self._kept[plan, prefix]
        kept.uses += 1
        kept.worth = self._clock + 1 + kept.uses
        return kept.states

    def promise(self, plan: Plan, kv_heads: KVHeads, start: int, n_bytes: int) -> list[int]:
        """Make room for the states of a run from ``start``; the boundaries that it should keep.

        Args:
            plan: that is run.
            kv_heads: that it is run with.
            start: boundary where the run starts.
            n_bytes: of one boundary, all batches together.
        """
        if n_bytes <= 0 or n_bytes > self.budget:
            return []
        every = max(1, -(-self._n_layers * n_bytes * _PATHS_IN_BUDGET // self.budget))
        boundaries = []
        path = {(plan, kv_heads[:boundary]) for boundary in range(len(kv_heads) + 1)}
        for boundary in range(start + 1, len(kv_heads)):
            key = (plan, kv_heads[:boundary])
            if boundary % every or key in self._kept or not self._make_room(n_bytes, path):
                continue
            self._kept[key] = _Kept(n_bytes, self._clock + 1)
            self.used += n_bytes
            boundaries.append(boundary)
        return boundaries

    def keep(self, plan: Plan, prefix: KVHeads, state: Tensor) -> None:
        """One more batch's states at a promised boundary; batches come in the plan's order."""
        self._kept[plan, prefix].states.append(
            state if self._device is None else state.to(self._device)
        )

    def withdraw(self, plan: Plan, kv_heads: KVHeads) -> None:
        """Forget boundaries of a run that did not come to its end."""
        for boundary in range(1, len(kv_heads) + 1):
            kept = self._kept.get((plan, kv_heads[:boundary]))
            if kept is not None and len(kept.states) < len(plan.batches):
                self._drop((plan, kv_heads[:boundary]))

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()
        self.used = 0

    def _make_room(self, n_bytes: int, spared: Collection[tuple[Plan, KVHeads]]) -> bool:
        """Drop what is worth least, the deepest first."""
        while self.used + n_bytes > self.budget:
            candidates = [key for key in self._kept if key not in spared]
            if not candidates:
                return False
            worst = min(candidates, key=lambda key: (self._kept[key].worth, -len(key[1])))
            self._clock = self._kept[worst].worth
            self._drop(worst)
        return True

    def _drop(self, key: tuple[Plan, KVHeads]) -> None:
        self.used -= self._kept.pop(key).n_bytes
