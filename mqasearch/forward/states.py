"""Hidden states kept from one mask to the next, within a budget of bytes.

Two masks that agree on the first layers have the same hidden states there, so the second starts at
the first layer in which they differ. The states that are kept are those with which the next mask is
expected to save most layers. The probability of its first layers is learned from the masks before
it, layer by layer. On the proposals of our own selectors this saves more than dropping the states
that were used least often or least recently.
"""

from collections.abc import Container, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mqasearch.forward.batches import Plan
from mqasearch.mask import KVHeads

Key = tuple[Plan, KVHeads]
"""A plan, and the KV heads of all layers before a boundary."""

_HALF_LIFE = 32
"""Number of runs after which a mask counts half, since the selector has moved on by then."""

_PRIOR_RUNS = 2.0
"""Weight of the frequencies over all layers against those of one layer, in runs."""


@dataclass(slots=True, eq=False)
class _Kept:
    """States at one boundary.

    Attributes:
        n_bytes: bytes of all batches.
        states: one tensor per batch; incomplete while the first mask is running.
    """

    n_bytes: int
    states: list[Tensor] = field(default_factory=list)


class StateStore:
    """States by plan and by the KV heads of all layers before them.

    Attributes:
        budget: bytes that are never exceeded.
        used: bytes that are kept or reserved for a run in progress.
    """

    def __init__(
        self,
        budget: int,
        n_layers: int,
        device: torch.device | None = None,
        most: int | None = None,
    ) -> None:
        """
        Args:
            budget: bytes.
            n_layers: number of the model's blocks.
            device: device to keep the states on; None = the device that computed them.
            most: greatest number of boundaries to keep; None = as many as fit.
        """
        self.budget = budget
        self._most = most
        self.used = 0
        self._device = device
        self._habits = _Habits(n_layers)
        self._kept: dict[Key, _Kept] = {}

    def deepest(self, plan: Plan, kv_heads: KVHeads) -> int:
        """The last boundary with kept states for this plan and these KV heads; 0 = none."""
        for boundary in range(len(kv_heads), 0, -1):
            kept = self._kept.get((plan, kv_heads[:boundary]))
            if kept is not None and len(kept.states) == len(plan.batches):
                return boundary
        return 0

    def states(self, plan: Plan, prefix: KVHeads) -> Sequence[Tensor]:
        """The states that are kept at a boundary, one tensor per batch.

        Raises:
            KeyError: nothing is kept there.
        """
        return self._kept[plan, prefix].states

    def promise(self, plan: Plan, kv_heads: KVHeads, start: int, n_bytes: int) -> list[int]:
        """Choose the boundaries whose states a run should keep, and make room for them.

        Args:
            plan: the plan that is run.
            kv_heads: the KV heads that it is run with.
            start: boundary where the run starts; the states kept there stay.
            n_bytes: bytes of one boundary, all batches together.

        Returns:
            Boundaries after ``start``, ascending.
        """
        self._habits.observe(plan, kv_heads)
        if not 0 < n_bytes <= self.budget:
            return []
        sizes = {key: kept.n_bytes for key, kept in self._kept.items()}
        new = {(plan, kv_heads[:boundary]) for boundary in range(start + 1, len(kv_heads))}
        new -= sizes.keys()
        sizes |= dict.fromkeys(new, n_bytes)
        dropped = self._superfluous(sizes, pinned=(plan, kv_heads[:start]))
        for key in dropped - new:
            self._drop(key)
        for key in new - dropped:
            self._kept[key] = _Kept(n_bytes)
            self.used += n_bytes
        return sorted(len(prefix) for _, prefix in new - dropped)

    def keep(self, plan: Plan, prefix: KVHeads, state: Tensor) -> None:
        """Add one batch's states at a promised boundary; batches come in the plan's order."""
        self._kept[plan, prefix].states.append(
            state if self._device is None else state.to(self._device)
        )

    def withdraw(self, plan: Plan, kv_heads: KVHeads) -> None:
        """Forget the boundaries of a run that did not finish."""
        for boundary in range(1, len(kv_heads) + 1):
            kept = self._kept.get((plan, kv_heads[:boundary]))
            if kept is not None and len(kept.states) < len(plan.batches):
                self._drop((plan, kv_heads[:boundary]))

    def clear(self) -> None:
        """Forget everything kept."""
        self._kept.clear()
        self.used = 0

    def _superfluous(self, sizes: dict[Key, int], pinned: Key) -> set[Key]:
        """The states to drop, least useful first, so that the rest fits into the budget.

        Both the work that a state saves and its bytes are proportional to its tokens, so size plays
        no part in the choice.
        """
        tree = _Tree({key: self._habits.chance(*key) for key in sizes})
        dropped: set[Key] = set()
        total = sum(sizes.values())
        while total > self.budget or (
            self._most is not None and len(sizes) - len(dropped) > self._most
        ):
            least = min(sizes.keys() - dropped - {pinned}, key=tree.worth)
            tree.remove(least)
            dropped.add(least)
            total -= sizes[least]
        return dropped

    def _drop(self, key: Key) -> None:
        self.used -= self._kept.pop(key).n_bytes


class _Habits:
    """How often each plan is run and each layer has each number of KV heads.

    The latest runs count most.
    """

    def __init__(self, n_layers: int) -> None:
        self._plans: dict[Plan, float] = {}
        self._layers: list[dict[int, float]] = [{} for _ in range(n_layers)]
        self._shares: list[dict[int, float]] = []

    def observe(self, plan: Plan, kv_heads: KVHeads) -> None:
        _count(self._plans, plan)
        for counts, heads in zip(self._layers, kv_heads, strict=True):
            _count(counts, heads)
        self._shares = self._layer_shares()

    def chance(self, plan: Plan, prefix: KVHeads) -> float:
        """The chance that the next run has this plan and this prefix; layers are independent."""
        chance = self._plans.get(plan, 0.0)
        for shares, heads in zip(self._shares, prefix, strict=False):
            chance *= shares.get(heads, 0.0)
        return chance

    def _layer_shares(self) -> list[dict[int, float]]:
        usual: dict[int, float] = {}
        for counts in self._layers:
            for heads, count in counts.items():
                usual[heads] = usual.get(heads, 0.0) + count
        everything = sum(usual.values())
        return [
            {
                heads: (counts.get(heads, 0.0) + _PRIOR_RUNS * count / everything)
                / (sum(counts.values()) + _PRIOR_RUNS)
                for heads, count in usual.items()
            }
            for counts in self._layers
        ]


def _count(counts: MutableMapping[Any, float], seen: Any) -> None:
    """Add 1 to a count, after all counts have decayed by one run."""
    for key in counts:
        counts[key] *= 0.5 ** (1 / _HALF_LIFE)
    counts[seen] = counts.get(seen, 0.0) + 1.0


class _Tree:
    """A tree of states; a state's parent is the state that a mask starts at without it.

    A state is of use to a mask that has its first layers but not those of any of its children.
    """

    def __init__(self, chances: Mapping[Key, float]) -> None:
        """
        Args:
            chances: state → the chance that a mask has its plan and first layers.
        """
        self._parents: dict[Key, Key | None] = {}
        self._children: dict[Key, set[Key]] = {key: set() for key in chances}
        self._uses = dict(chances)
        for key in chances:
            parent = self._parents[key] = _parent(key, chances)
            if parent is not None:
                self._children[parent].add(key)
                self._uses[parent] -= chances[key]

    def worth(self, key: Key) -> tuple[float, int]:
        """Layers that the next mask is expected to save by this state; in a tie deeper is worse."""
        parent = self._parents[key]
        layers = len(key[1]) - (len(parent[1]) if parent is not None else 0)
        return self._uses[key] * layers, -len(key[1])

    def remove(self, key: Key) -> None:
        """Remove a state; its parent takes over its uses and its children."""
        parent = self._parents.pop(key)
        children = self._children.pop(key)
        for child in children:
            self._parents[child] = parent
        if parent is not None:
            self._uses[parent] += self._uses[key]
            self._children[parent].remove(key)
            self._children[parent] |= children


def _parent(key: Key, among: Container[Key]) -> Key | None:
    plan, prefix = key
    for boundary in range(len(prefix) - 1, 0, -1):
        if (plan, prefix[:boundary]) in among:
            return plan, prefix[:boundary]
    return None
