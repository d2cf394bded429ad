"""The original model's outputs at the places where converted models are compared with it.

Its logits are kept if they fit. If not, its final hidden states are kept (a few hundred times
smaller), and the logits are computed from them again. If these do not fit either, the original is
run again each time. All three ways give the same numbers.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from mqasearch.forward.batches import Plan

Kind = Literal["logits", "hidden"]

_LOGITS_SHARE = 0.5
"""Share of the budget that one plan's logits may take, since a study has several plans."""


@dataclass(frozen=True, slots=True)
class Reference:
    """The original's outputs at the compared places of one batch.

    Attributes:
        kind: what the rows are.
        rows: [places, vocabulary] logits or [places, hidden] final hidden states.
    """

    kind: Kind
    rows: Tensor


@dataclass(slots=True)
class _Kept:
    kind: Kind
    n_bytes: int
    batches: list[Tensor] = field(default_factory=list)


class ReferenceStore:
    """References of plans within a budget of bytes; the one used least recently is dropped first.

    Attributes:
        budget: bytes that are never exceeded.
    """

    def __init__(self, budget: int, hidden_bytes: int, logits_bytes: int) -> None:
        """
        Args:
            budget: bytes.
            hidden_bytes: bytes of one place's hidden states.
            logits_bytes: bytes of one place's logits.
        """
        self.budget = budget
        self._sizes: Sequence[tuple[Kind, int, float]] = (
            ("logits", logits_bytes, _LOGITS_SHARE * budget),
            ("hidden", hidden_bytes, budget),
        )
        self._kept: OrderedDict[Plan, _Kept] = OrderedDict()

    @property
    def used(self) -> int:
        """Bytes that are kept or reserved for a run in progress."""
        return sum(kept.n_bytes for kept in self._kept.values())

    def kind(self, plan: Plan) -> Kind | None:
        """The kind of rows that is or would be kept for a plan; None if neither kind fits."""
        for kind, n_bytes, limit in self._sizes:
            if plan.n_compared * n_bytes <= limit:
                return kind
        return None

    def has(self, plan: Plan) -> bool:
        """Whether all batches of a plan are kept."""
        kept = self._kept.get(plan)
        return kept is not None and len(kept.batches) == len(plan.batches)

    def of(self, plan: Plan, number: int) -> Reference:
        """The reference that is kept for one batch.

        Raises:
            KeyError: nothing is kept for the plan.
        """
        self._kept.move_to_end(plan)
        kept = self._kept[plan]
        return Reference(kept.kind, kept.batches[number])

    @contextmanager
    def keeping(self, plan: Plan) -> Iterator[list[Tensor] | None]:
        """A list to put each batch's rows into, in order; None if they are kept or do not fit.

        If the list is incomplete after the block, it is dropped.
        """
        kind = None if self.has(plan) or not plan.compared else self.kind(plan)
        if kind is None:
            yield None
            return
        per_place = next(n_bytes for known, n_bytes, _ in self._sizes if known == kind)
        kept = _Kept(kind, plan.n_compared * per_place)
        while self.used + kept.n_bytes > self.budget:
            self._kept.popitem(last=False)
        self._kept[plan] = kept
        try:
            yield kept.batches
        finally:
            if not self.has(plan):
                self._kept.pop(plan, None)

    def clear(self) -> None:
        """Forget everything kept."""
        self._kept.clear()
