"""The same scores as lm-eval's, with a fraction of the work.

Work is shared in two ways. Answers share the tokens of their question (see ``trees``). Masks share
the layers before the first one in which they differ (see ``states`` and ``resuming``). Requests,
tokens, truncation, rolling windows and metrics are lm-eval's own code; generation is HFLM's,
unchanged.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from lm_eval.api.instance import Instance
from transformers import PreTrainedTokenizerBase

from mqasearch.conversion import ConvertibleModel
from mqasearch.errors import ScoreError
from mqasearch.forward import (
    MASKS_KEPT,
    ROW_TOKENS,
    Answer,
    BatchSize,
    Divergence,
    Plan,
    PlanAnswers,
    PlanRunner,
    ReferenceStore,
    StateStore,
    TokenPair,
    default_batch_tokens,
    default_logits_bytes,
    default_reference_budget,
    default_state_budget,
    plan_of,
    ran_out_of_memory,
    resumes,
    takes_trees,
)
from mqasearch.mask import KVHeads
from mqasearch.models import ResumableModel
from mqasearch.score import Documents, NoScore, Score, TaskSpec
from mqasearch.scoring.harness import HarnessScorer, ResidentLM, TokenRequest
from mqasearch.tasks import (
    Comparison,
    PreparedDocument,
    PreparedTask,
    Responses,
    TaskLibrary,
    is_compared,
    score_of,
)

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class SharedPrefixLM(ResidentLM):
    """HFLM whose log-likelihoods are computed with plans, trees and kept states.

    Attributes:
        size: size of a batch, in tokens; smaller while memory is short.
        used_plans: plans that answered the requests of one mask (an ordered set).
        passages: token pairs that are compared with the original's while they are answered → True
            if the context's tokens count too.
        divergences: the results of these comparisons, for the model that answered last.
    """

    def __init__(
        self,
        convertible: ConvertibleModel,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int,
        *,
        batch_tokens: int | None = None,
        row_tokens: int = ROW_TOKENS,
        state_bytes: int | None = None,
        state_device: torch.device | None = None,
        reference_bytes: int | None = None,
    ) -> None:
        super().__init__(convertible.model, tokenizer, batch_size)
        self.convertible = convertible
        model, device = convertible.model, convertible.model.device
        self.row_tokens = row_tokens
        self.size = BatchSize(
            batch_tokens
            or default_batch_tokens(device, convertible.shape.hidden_size, model.dtype.itemsize)
        )
        budget = state_bytes
        if budget is None:
            budget = default_state_budget(state_device or device)
        self.resumable = ResumableModel(model, convertible.family.blocks(model))
        self.resumes = resumes(self.resumable)
        if not self.resumes:
            _log.warning("%s: layers cannot be resumed; every mask runs in full", _name(model))
            budget = 0
        self.trees = takes_trees(self.resumable)
        if not self.trees:
            _log.warning("%s: no tree attention; answers run in separate rows", _name(model))
        self.resumable.layer_tokens = 0
        n_layers = self.resumable.n_layers
        most = MASKS_KEPT * n_layers if state_bytes is None else None
        self.store = StateStore(budget, n_layers, state_device, most)
        if reference_bytes is None:
            reference_bytes = default_reference_budget(device)
        self.references = ReferenceStore(
            reference_bytes,
            convertible.shape.hidden_size * model.dtype.itemsize,
            model.config.get_text_config().vocab_size * model.dtype.itemsize,
        )
        self.runner = PlanRunner(
            self.resumable,
            self.store,
            self.references,
            default_logits_bytes(device),
            convertible.shape.original,
            convertible.apply,
        )
        self.passages: Mapping[TokenPair, bool] = {}
        self.divergences: dict[TokenPair, Divergence] = {}
        self._plans: dict[tuple[Any, ...], Plan] = {}
        self._known: dict[tuple[Plan, KVHeads], PlanAnswers] = {}
        self._window_said = False
        self.used_plans: dict[Plan, None] = {}

    def _loglikelihood_tokens(
        self, requests: list[TokenRequest], disable_tqdm: bool = True, **options: Any
    ) -> list[Answer]:
        pairs = tuple(
            (tuple(context), tuple(continuation)) for _, context, continuation in requests
        )
        if not pairs:
            return []
        kv_heads = self.convertible.kv_heads

        def run() -> PlanAnswers:
            plan = self._plan(pairs)
            self.used_plans[plan] = None
            return self._known.get((plan, kv_heads)) or self.runner.answers(plan, kv_heads)

        if not self._known and self.size.grow():
            self._forget_plans()
            _log.info("batches of %d tokens again", self.size.tokens)
        found = self._within_memory(run)
        if not self._known:  # else nothing was run
            self.size.ran()
        self.divergences |= {pairs[number]: apart for number, apart in found.divergences.items()}
        return found.answers

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """As in HFLM, but all windows of all texts come at once, as batches are made here."""
        batch_size = int(self.batch_size)
        self.batch_size_per_gpu = 2**31
        try:
            likelihoods: list[float] = super().loglikelihood_rolling(requests, disable_tqdm=True)
        finally:
            self.batch_size_per_gpu = batch_size
        return likelihoods

    @contextmanager
    def running_ahead(self, masks: Sequence[KVHeads]) -> Iterator[None]:
        """Answer ``used_plans`` for many masks; calls within the block use these answers.

        Args:
            masks: distinct, in lexicographic order.
        """

        def run() -> None:
            plans = [plan for plan in self._plans.values() if plan in self.used_plans]
            for plan in plans:
                answers = self.runner.answers_many(plan, masks)
                self._known |= {(plan, m): answer for m, answer in zip(masks, answers, strict=True)}

        try:
            with self.convertible.converted(masks[0]):
                self._within_memory(run)
            yield
        finally:
            self._known.clear()

    def state_bytes_of_a_mask(self) -> int:
        """Bytes of one mask's states at all boundaries, for the requests of the last mask."""
        n_boundaries = self.resumable.n_layers - 1
        return n_boundaries * sum(map(self.runner.boundary_bytes, self.used_plans))

    def saved_layer_tokens(self, kv_heads: KVHeads) -> int:
        """Tokens times the layers that they need not be run through, for ``kv_heads``."""
        plans = self._plans.values()
        return sum(plan.n_tokens * self.store.deepest(plan, kv_heads) for plan in plans)

    def _plan(self, pairs: tuple[TokenPair, ...]) -> Plan:
        compared = tuple((pair, self.passages[pair]) for pair in pairs if pair in self.passages)
        key = (pairs, compared)
        if key not in self._plans:
            plan = self._lay_out(pairs, self.trees)
            window = _window(self.convertible.model.config.get_text_config())
            if plan.has_trees and window is not None and plan.deepest() >= window:
                if not self._window_said:
                    _log.warning("texts exceed the sliding window of %d: separate rows", window)
                    self._window_said = True
                plan = self._lay_out(pairs, trees=False)
            self._plans[key] = plan
        return self._plans[key]

    def _lay_out(self, pairs: Sequence[TokenPair], trees: bool) -> Plan:
        return plan_of(
            pairs,
            max_length=self.max_length,
            batch_tokens=self.size.tokens,
            row_tokens=min(self.row_tokens, self.size.tokens),
            trees=trees,
            device=self.convertible.model.device,
            passages=self.passages,
        )

    def _within_memory(self, run: Callable[[], _T]) -> _T:
        """Call ``run``; if memory runs out, free all that is kept, halve batches and try again."""
        while True:
            try:
                return run()
            except (RuntimeError, MemoryError) as error:
                if not ran_out_of_memory(error):
                    raise
                shrinks = self.size.shrink()
                self._forget_plans()
                if not shrinks:
                    raise
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            _log.warning("out of memory: batches of %d tokens from now on", self.size.tokens)

    def _forget_plans(self) -> None:
        """Drop the plans, which are for another batch size, and all that is kept for them."""
        self._plans.clear()
        self.store.clear()
        self.references.clear()


class SharedPrefixScorer(HarnessScorer):
    """Gives the same scores as ``HarnessScorer``, with several times less work."""

    def __init__(
        self,
        convertible: ConvertibleModel,
        tokenizer: PreTrainedTokenizerBase,
        fingerprint: str,
        dtype: torch.dtype | str,
        *,
        batch_size: int = 16,
        library: TaskLibrary | None = None,
        batch_tokens: int | None = None,
        row_tokens: int = ROW_TOKENS,
        state_bytes: int | None = None,
        state_device: torch.device | None = None,
        reference_bytes: int | None = None,
    ) -> None:
        """
        Args:
            convertible, tokenizer, fingerprint, dtype, library: as in ``HarnessScorer``.
            batch_size: number of rows at once when HFLM generates text.
            batch_tokens: number of tokens at once otherwise; None = by device and free memory.
            row_tokens: length in tokens to which rows are filled with short texts.
            state_bytes: memory for hidden states kept between masks; 0 = none, None = a sixth of
                the free memory of their device, at most for the boundaries of three masks.
            state_device: the device that keeps the states; None = the model's device. The host's
                memory is larger and slower than a GPU's.
            reference_bytes: memory for the original's outputs at the places where masks are
                compared with it; 0 = it is run again each time, None = a share of the free memory.
        """
        lm = SharedPrefixLM(
            convertible,
            tokenizer,
            batch_size,
            batch_tokens=batch_tokens,
            row_tokens=row_tokens,
            state_bytes=state_bytes,
            state_device=state_device,
            reference_bytes=reference_bytes,
        )
        super().__init__(convertible, tokenizer, fingerprint, dtype, library=library, lm=lm)
        self.lm: SharedPrefixLM = lm

    def score_many(
        self, masks: Sequence[KVHeads], task: TaskSpec, documents: Documents
    ) -> list[Score | NoScore]:
        """Score many masks; the first layers that some of them share are run only once.

        Args:
            masks: KV heads per layer of each mask, in any order.
            task, documents: as in ``score``.

        Returns:
            One score for each mask, in their order, or NoScore if ``score`` would raise ScoreError.
            The seconds are divided equally.

        Raises:
            MaskError: a mask does not fit the model.
        """
        if not self.lm.resumes or len(set(masks)) < 2:
            return super().score_many(masks, task, documents)
        prepared = self.library.task(task, documents).prepare(documents)
        first, *others = sorted(set(masks))
        started = time.perf_counter()
        answered = {first: self.compared(first, prepared)}
        with self.lm.running_ahead(others):
            answered |= {kv_heads: self.compared(kv_heads, prepared) for kv_heads in others}
        seconds = (time.perf_counter() - started) / len(answered)
        scores = {m: _score_or_none(prepared, *both, seconds) for m, both in answered.items()}
        return [scores[kv_heads] for kv_heads in masks]

    def responses(self, kv_heads: KVHeads, prepared: PreparedTask) -> list[list[Any]]:
        """As in ``HarnessScorer``; the passages are compared in the same forward passes."""
        self.lm.used_plans.clear()
        self.lm.divergences.clear()
        self.lm.passages = {
            passage.pair: passage.whole
            for document in prepared.documents
            if is_compared(document.task)
            for passage in self.passages(document)
        }
        return super().responses(kv_heads, prepared)

    def _divergences(
        self, kv_heads: KVHeads, documents: Sequence[PreparedDocument]
    ) -> list[tuple[Divergence, ...]]:
        """The divergences that ``responses`` has computed."""
        if kv_heads == self.shape.original:
            return [()] * len(documents)
        return [
            tuple(self.lm.divergences[passage.pair] for passage in self.passages(document))
            for document in documents
        ]

    def gains_from_many(self) -> bool:
        """Whether the memory is too small for the states of all layers of one mask.

        Then masks that are scored one after the other share less than they could.
        """
        return self.lm.resumes and self.lm.state_bytes_of_a_mask() > self.lm.store.budget

    def saved_layer_tokens(self, kv_heads: KVHeads) -> int:
        """Tokens times the layers that they need not be run through, by the kept states."""
        return self.lm.saved_layer_tokens(kv_heads)


def _score_or_none(
    prepared: PreparedTask,
    responses: Responses,
    comparisons: Sequence[Comparison | None],
    seconds: float,
) -> Score | NoScore:
    try:
        return score_of(prepared, responses, seconds, comparisons)
    except ScoreError as error:
        return NoScore(str(error))


def _name(model: Any) -> str:
    return str(model.config.model_type)


def _window(config: Any) -> int | None:
    """The smallest number of tokens that a layer looks back; None if every layer sees all."""
    sizes = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return min((int(size) for size in sizes if size), default=None)
