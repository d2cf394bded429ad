"""Answers to a plan's requests; kept states spare as many layers as possible."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from mqasearch.forward.batches import Answer, Batch, Plan
from mqasearch.forward.likelihoods import (
    Divergence,
    divergences,
    first_likeliest,
    log_probabilities,
    normalised,
)
from mqasearch.forward.reference import Kind, Reference, ReferenceStore
from mqasearch.forward.states import StateStore
from mqasearch.mask import KVHeads
from mqasearch.models import ResumableModel
from mqasearch.time_left import TimeLeft

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PlanAnswers:
    """What a model answers to a plan.

    Attributes:
        answers: one for each request.
        divergences: request → its passage's divergence from the original; empty for the original.
    """

    answers: list[Answer]
    divergences: Mapping[int, Divergence]


class PlanRunner:
    """Runs plans through one model under changing KV heads."""

    def __init__(
        self,
        model: ResumableModel,
        store: StateStore,
        references: ReferenceStore,
        logits_bytes: int,
        original: KVHeads,
        apply: Callable[[KVHeads], None],
    ) -> None:
        """
        Args:
            model: runs with the weights that it has at the moment.
            store: states kept between calls.
            references: the original's outputs, kept between calls.
            logits_bytes: bytes of logits to hold at once.
            original: KV heads of the unconverted model.
            apply: gives the model other KV heads.
        """
        self.model = model
        self.store = store
        self.references = references
        self.logits_bytes = logits_bytes
        self.original = original
        self.apply = apply

    def answers(self, plan: Plan, kv_heads: KVHeads) -> PlanAnswers:
        """Answer a plan's requests, and compare its passages with the original's.

        Args:
            plan: the requests.
            kv_heads: the model's KV heads now; they are the same when this returns.
        """
        if kv_heads == self.original:
            with self.references.keeping(plan) as kept:
                return self._answers(plan, kv_heads, kept)
        if plan.compared and not self.references.has(plan) and self.references.kind(plan):
            with self._as_original(kv_heads):
                self.answers(plan, self.original)
        return self._answers(plan, kv_heads, None)

    @contextmanager
    def _as_original(self, kv_heads: KVHeads | None) -> Iterator[None]:
        """The model has the original's weights within the block, then those of ``kv_heads``.

        None = any weights will do after the block.
        """
        self.apply(self.original)
        try:
            yield
        finally:
            if kv_heads is not None:
                self.apply(kv_heads)

    def _answers(self, plan: Plan, kv_heads: KVHeads, kept: list[Tensor] | None) -> PlanAnswers:
        start = self.store.deepest(plan, kv_heads)
        known = self.store.states(plan, kv_heads[:start]) if start else []
        boundaries = self.store.promise(plan, kv_heads, start, self.boundary_bytes(plan))
        tally = _Tally(plan)
        keep = self.references.kind(plan) if kept is not None else None
        whose = "the original" if kv_heads == self.original else "a mask"
        told, done = TimeLeft(_log, f"scoring {whose}"), 0
        try:
            for number, batch in enumerate(plan.batches):
                reference = self._reference(plan, number, kv_heads)
                states = self._run(batch, start, known[number] if start else None, boundaries)
                for boundary in boundaries:
                    self.store.keep(plan, kv_heads[:boundary], states[boundary])
                rows = self._score(batch, states[self.model.n_layers], tally, reference, keep)
                if kept is not None:
                    kept.append(rows)
                done += batch.n_tokens
                told(done, plan.n_tokens)
        except BaseException:
            self.store.withdraw(plan, kv_heads)
            raise
        return tally.answers()

    def answers_many(self, plan: Plan, masks: Sequence[KVHeads]) -> list[PlanAnswers]:
        """Answer a plan's requests under many masks; layers that masks share at first run once.

        For each batch, the masks are visited in the order of the tree of their layers. So only the
        states of one batch are held at a time, at the boundaries that a later mask starts from.

        Args:
            plan: the requests.
            masks: distinct masks in lexicographic order.
        """
        steps = walk(masks)
        tallies = [_Tally(plan) for _ in masks]
        told, done = TimeLeft(_log, f"scoring {len(masks)} masks"), 0
        for number, batch in enumerate(plan.batches):
            reference = self._reference(plan, number, None)
            held: dict[int, Tensor] = {}
            for kv_heads, (start, wanted), tally in zip(masks, steps, tallies, strict=True):
                self.apply(kv_heads)
                held = {boundary: held[boundary] for boundary in held if boundary <= start}
                states = self._run(batch, start, held.get(start), wanted)
                held |= {boundary: states[boundary] for boundary in wanted}
                against = None if kv_heads == self.original else reference
                self._score(batch, states[self.model.n_layers], tally, against)
            done += batch.n_tokens
            told(done, plan.n_tokens)
        return [tally.answers() for tally in tallies]

    def _reference(self, plan: Plan, number: int, kv_heads: KVHeads | None) -> Reference | None:
        """The original's outputs at a batch's compared places: kept, or computed now.

        None if the model is the original itself, or if no place is compared.

        Args:
            plan: the batch's plan.
            number: the batch's index in the plan.
            kv_heads: KV heads to give the model afterwards; None = any.
        """
        batch = plan.batches[number]
        if kv_heads == self.original or not len(batch.compared):
            return None
        if self.references.has(plan):
            return self.references.of(plan, number)
        with self._as_original(kv_heads):
            start = self.store.deepest(plan, self.original)
            hidden = self.store.states(plan, self.original[:start])[number] if start else None
            states = self._run(batch, start, hidden, ())
        return Reference("hidden", _chosen(batch, states[self.model.n_layers])[batch.compared])

    def _run(
        self, batch: Batch, start: int, hidden: Tensor | None, wanted: Sequence[int]
    ) -> dict[int, Tensor]:
        if hidden is not None:
            hidden = hidden.to(batch.tokens.device)
        return self.model.states(
            batch.tokens,
            positions=batch.positions,
            visible=batch.visible,
            start=start,
            hidden=hidden,
            wanted=wanted,
        )

    def boundary_bytes(self, plan: Plan) -> int:
        """Bytes of the hidden states at one boundary."""
        config = self.model.model.config.get_text_config()
        return plan.n_tokens * int(config.hidden_size) * self.model.model.dtype.itemsize

    @torch.inference_mode()
    def _score(
        self,
        batch: Batch,
        hidden: Tensor,
        tally: "_Tally",
        reference: Reference | None = None,
        keep: Kind | None = None,
    ) -> Tensor:
        """Add a batch's log-probabilities and divergences to their requests, some at a time.

        Returns:
            The rows to keep as a reference, of the kind ``keep``; no row if that is None.
        """
        vocabulary = self.model.model.config.get_text_config().vocab_size
        step = max(1, self.logits_bytes // (vocabulary * hidden.dtype.itemsize))
        chosen = _chosen(batch, hidden)
        apart, kept = [], [chosen[batch.compared] if keep == "hidden" else chosen[:0]]
        for first in range(0, len(chosen), step):
            logits = self.model.logits(chosen[first : first + step])
            normalisers, highest = normalised(logits)
            part = _part(batch.places, first, step)
            places, targets, owners = (
                batch.places[part] - first,
                batch.targets[part],
                batch.owners[part],
            )
            log_probs, likeliest = log_probabilities(logits, normalisers, highest, places, targets)
            tally.add(owners, log_probs.cpu(), likeliest.cpu())
            # argmax is slow, and only matters if every token so far was likeliest.
            open_ones = tally.greedy[owners].to(places.device)
            first_of_ties = first_likeliest(logits, places[open_ones], targets[open_ones])
            tally.add_greedy(owners[open_ones.cpu()], first_of_ties.cpu())
            part = _part(batch.compared, first, step)
            rows = batch.compared[part] - first
            if keep == "logits":
                kept = [*kept, logits[rows]] if first else [logits[rows]]
            if reference is not None and len(rows):
                before = reference.rows[part]
                if reference.kind == "hidden":
                    before = self.model.logits(before)
                apart.append(divergences(before, logits[rows], normalisers[rows]).cpu())
        if apart:
            tally.add_divergences(batch, torch.cat(apart))
        return torch.cat(kept)


def _chosen(batch: Batch, hidden: Tensor) -> Tensor:
    """[scored, hidden]: a batch's final states at its scored places."""
    return hidden.flatten(0, 1)[batch.scored]


def _part(places: Tensor, first: int, step: int) -> slice:
    """The slice of the ascending ``places`` that are in [first, first + step)."""
    ends = torch.tensor([first, first + step], device=places.device)
    low, high = torch.searchsorted(places, ends).tolist()
    return slice(low, high)


def walk(masks: Sequence[KVHeads]) -> list[tuple[int, list[int]]]:
    """How to run masks so that first layers that masks share are run once.

    Args:
        masks: distinct masks in lexicographic order, so that those that share most are neighbours.

    Returns:
        For each mask: the boundary to start at, whose states an earlier mask left, and the
        boundaries that a later mask will start at.
    """
    shared = [shared_layers(before, after) for before, after in pairwise(masks)]
    steps = []
    for number in range(len(masks)):
        start = shared[number - 1] if number else 0
        wanted: set[int] = set()
        lowest = len(masks[number])
        for after in shared[number:]:
            lowest = min(lowest, after)
            if lowest <= start:
                break
            wanted.add(lowest)
        steps.append((start, sorted(wanted)))
    return steps


def shared_layers(one: KVHeads, two: KVHeads) -> int:
    """Number of leading layers on which both agree."""
    for layer, (mine, theirs) in enumerate(zip(one, two, strict=True)):
        if mine != theirs:
            return layer
    return len(one)


class _Tally:
    """Sums of log-probabilities and divergences by request."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.sums = torch.zeros(plan.n_requests, dtype=torch.float64)
        self.greedy = torch.ones(plan.n_requests, dtype=torch.bool)
        self._apart = torch.zeros(2, plan.n_requests, dtype=torch.float64)
        self._n_apart = torch.zeros(2, plan.n_requests, dtype=torch.long)

    def add(self, owners: Tensor, log_probs: Tensor, likeliest: Tensor) -> None:
        self.sums.index_add_(0, owners, log_probs.double())
        self.add_greedy(owners, likeliest)

    def add_greedy(self, owners: Tensor, likeliest: Tensor) -> None:
        self.greedy[owners[~likeliest]] = False

    def add_divergences(self, batch: Batch, apart: Tensor) -> None:
        """Add a batch's divergences to the sums over all tokens and over the continuation's."""
        values = apart.double()[batch.spots]
        for row, chosen in enumerate((torch.ones_like(batch.answers), batch.answers)):
            passages = batch.passages[chosen]
            self._apart[row].index_add_(0, passages, values[chosen])
            self._n_apart[row].index_add_(0, passages, torch.ones_like(passages))

    def answers(self) -> PlanAnswers:
        found = {
            request: Divergence(
                self._apart[0, request].item(),
                int(self._n_apart[0, request]),
                self._apart[1, request].item(),
                int(self._n_apart[1, request]),
            )
            for request in self._plan.compared
            if self._n_apart[0, request]
        }
        answers = list(zip(self.sums.tolist(), self.greedy.tolist(), strict=True))
        return PlanAnswers(answers, found)
