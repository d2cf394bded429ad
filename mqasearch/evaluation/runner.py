"""Answers to a plan's requests, from as few layers as the kept states allow."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from mqasearch.evaluation.batches import Answer, Batch, Plan
from mqasearch.evaluation.likelihoods import first_likeliest, log_probabilities
from mqasearch.evaluation.resuming import ResumableModel
from mqasearch.evaluation.states import StateStore
from mqasearch.mask import KVHeads


class PlanRunner:
    """Runs plans through one model under changing KV heads."""

    def __init__(self, model: ResumableModel, store: StateStore, logits_bytes: int) -> None:
        """
        Args:
            model: runs with whatever weights it has at the moment.
            store: states kept between calls.
            logits_bytes: logits to hold at once.
        """
        self.model = model
        self.store = store
        self.logits_bytes = logits_bytes

    def answers(self, plan: Plan, kv_heads: KVHeads) -> list[Answer]:
        """Answer a plan's requests.

        Args:
            plan: the requests.
            kv_heads: what the model's weights are now.
        """
        start = self.store.deepest(plan, kv_heads)
        kept = self.store.states(plan, kv_heads[:start]) if start else []
        boundaries = self.store.promise(plan, kv_heads, start, self.boundary_bytes(plan))
        tally = _Tally(plan.n_requests)
        try:
            for number, batch in enumerate(plan.batches):
                states = self._run(batch, start, kept[number] if start else None, boundaries)
                for boundary in boundaries:
                    self.store.keep(plan, kv_heads[:boundary], states[boundary])
                self._score(batch, states[self.model.n_layers], tally)
        except BaseException:
            self.store.withdraw(plan, kv_heads)
            raise
        return tally.answers()

    def answers_many(
        self, plan: Plan, masks: Sequence[KVHeads], apply: Callable[[KVHeads], None]
    ) -> list[list[Answer]]:
        """Answer a plan's requests under many KV heads, each shared beginning run once.

        The masks are walked as the tree of their layers, batch by batch, so that only the states
        of one batch, at the boundaries where the walk comes back to, are held at a time.

        Args:
            plan: the requests.
            masks: distinct, in lexicographic order.
            apply: gives the model other KV heads.
        """
        steps = walk(masks)
        tallies = [_Tally(plan.n_requests) for _ in masks]
        for batch in plan.batches:
            held: dict[int, Tensor] = {}
            for kv_heads, (start, wanted), tally in zip(masks, steps, tallies, strict=True):
                apply(kv_heads)
                held = {boundary: held[boundary] for boundary in held if boundary <= start}
                states = self._run(batch, start, held.get(start), wanted)
                held |= {boundary: states[boundary] for boundary in wanted}
                self._score(batch, states[self.model.n_layers], tally)
        return [tally.answers() for tally in tallies]

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
        """Of the hidden states at one boundary."""
        config = self.model.model.config.get_text_config()
        return plan.n_tokens * int(config.hidden_size) * self.model.model.dtype.itemsize

    @torch.inference_mode()
    def _score(self, batch: Batch, hidden: Tensor, tally: "_Tally") -> None:
        """Add a batch's log-probabilities to their requests, a few positions at a time."""
        vocabulary = self.model.model.config.get_text_config().vocab_size
        step = max(1, self.logits_bytes // (vocabulary * hidden.dtype.itemsize))
        chosen = hidden.flatten(0, 1)[batch.scored]
        for first in range(0, len(chosen), step):
            logits = self.model.logits(chosen[first : first + step])
            low = int(torch.searchsorted(batch.places, first))
            high = int(torch.searchsorted(batch.places, first + step))
            places = batch.places[low:high] - first
            targets, owners = batch.targets[low:high], batch.owners[low:high]
            log_probs, likeliest = log_probabilities(logits, places, targets)
            tally.add(owners, log_probs.cpu(), likeliest.cpu())
            # argmax is dear, and only matters where everything so far was likeliest.
            open_ones = tally.greedy[owners].to(places.device)
            first_of_ties = first_likeliest(logits, places[open_ones], targets[open_ones])
            tally.add_greedy(owners[open_ones.cpu()], first_of_ties.cpu())


def walk(masks: Sequence[KVHeads]) -> list[tuple[int, list[int]]]:
    """How to run masks so that each shared beginning is run once.

    Args:
        masks: distinct, in lexicographic order, so that those that share most are neighbours.

    Returns:
        For each mask: the boundary to start at, whose states an earlier mask left, and the
        boundaries whose states a later mask will start at.
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
    """Sums of log-probabilities by request."""

    def __init__(self, n_requests: int) -> None:
        self.sums = torch.zeros(n_requests, dtype=torch.float64)
        self.greedy = torch.ones(n_requests, dtype=torch.bool)

    def add(self, owners: Tensor, log_probs: Tensor, likeliest: Tensor) -> None:
        self.sums.index_add_(0, owners, log_probs.double())
        self.add_greedy(owners, likeliest)

    def add_greedy(self, owners: Tensor, likeliest: Tensor) -> None:
        self.greedy[owners[~likeliest]] = False

    def answers(self) -> list[Answer]:
        return list(zip(self.sums.tolist(), self.greedy.tolist(), strict=True))
