"""lm-eval's own scoring, for a model that stays in memory while its layers are replaced."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mqasearch.conversion import ConvertibleModel
from mqasearch.forward import Answer, Divergence, TokenPair
from mqasearch.mask import KVHeads, ModelShape
from mqasearch.score import Documents, NoScore, Score, ScoreKey, TaskSpec
from mqasearch.scoring.identity import Identity, tokenizer_digest
from mqasearch.scoring.scorer import score_each
from mqasearch.tasks import (
    Comparison,
    Passage,
    PreparedDocument,
    PreparedTask,
    Responses,
    Row,
    TaskLibrary,
    compared_request,
    gold_choices,
    is_compared,
    known_rows,
    rows_of,
    score_of,
    score_of_rows,
)

TokenRequest = tuple[tuple[str, str] | None, list[int], list[int]]
"""lm-eval's token request: the two texts (None in rolling requests), context tokens, continuation
tokens."""


class ResidentLM(HFLM):  # type: ignore[misc]
    """HFLM with a model that is already loaded; each pair of texts is tokenised only once.

    The softmax is computed in float32 (``softmax_dtype``, an option of HFLM): in bfloat16 the sum
    of an answer's log-probabilities would be rounded to steps of a half.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int
    ) -> None:
        with _quiet():
            super().__init__(
                pretrained=model,
                tokenizer=tokenizer,
                batch_size=batch_size,
                softmax_dtype="float32",
            )
        self._pairs: dict[tuple[str, str], tuple[list[int], list[int]]] = {}

    def token_pairs(self, instance: Instance) -> list[TokenPair]:
        """The token requests that lm-eval's own code makes from one of its requests.

        A log-likelihood gives one; a rolling log-likelihood gives one for each window.
        """
        listener = _Listener(self)
        getattr(listener, instance.request_type)([instance], disable_tqdm=True)
        return listener.heard

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        pair = (context, continuation)
        if pair not in self._pairs:
            self._pairs[pair] = super()._encode_pair(context, continuation)
        return self._pairs[pair]

    def _loglikelihood_tokens(
        self, requests: list[TokenRequest], disable_tqdm: bool = True, **options: Any
    ) -> list[Answer]:
        """As in HFLM, but without progress bars, which would hide that of the search."""
        answers: list[Answer] = super()._loglikelihood_tokens(
            requests, disable_tqdm=True, **options
        )
        return answers


class _Listener(ResidentLM):
    """An LM with another one's tokenizer and settings that notes the requests, and runs no model.

    Attributes:
        heard: the token requests so far.
    """

    def __init__(self, lm: ResidentLM) -> None:
        self.__dict__.update(vars(lm))
        self.heard: list[TokenPair] = []

    def _loglikelihood_tokens(
        self, requests: list[TokenRequest], disable_tqdm: bool = True, **options: Any
    ) -> list[Answer]:
        self.heard += [(tuple(context), tuple(rest)) for _, context, rest in requests]
        return [(0.0, False)] * len(requests)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence HFLM's warning that only one process may use a model passed in: only one does."""
    logger = logging.getLogger("lm_eval.models.huggingface")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


class HarnessScorer:
    """Scores masks with lm-eval's own prompts, HFLM and metrics, and caches nothing of a mask.

    It is the reference that every faster scorer must agree with.
    """

    def __init__(
        self,
        convertible: ConvertibleModel,
        tokenizer: PreTrainedTokenizerBase,
        fingerprint: str,
        dtype: torch.dtype | str,
        *,
        batch_size: int = 16,
        library: TaskLibrary | None = None,
        lm: ResidentLM | None = None,
    ) -> None:
        """
        Args:
            convertible: the model; only its method ``converted`` may change it.
            tokenizer: the model's tokenizer. lm-eval gives it a pad token if it has none.
            fingerprint: fingerprint of the original weights.
            dtype: dtype of the weights.
            batch_size: number of rows that HFLM runs at once.
            library: prepared tasks to share with another scorer.
            lm: answers lm-eval's requests with the same model; None = HFLM.
        """
        self.convertible = convertible
        self.model = fingerprint
        self.dtype = str(dtype).removeprefix("torch.")
        self.tokenizer = tokenizer_digest(tokenizer)  # before lm-eval gives it a pad token
        self.library = library or TaskLibrary()
        self.lm = lm or ResidentLM(convertible.model, tokenizer, batch_size)
        self._passages: dict[PreparedDocument, tuple[Passage, ...]] = {}
        self._original: dict[PreparedDocument, list[Any]] = {}

    @property
    def shape(self) -> ModelShape:
        """Shape of the original model."""
        return self.convertible.shape

    def key(self, kv_heads: KVHeads, task: TaskSpec, documents: Documents) -> ScoreKey:
        """The key under which the result of ``score`` may be shared; never runs the model."""
        loaded = self.library.task(task, documents)
        identity = Identity(
            self.model,
            self.tokenizer,
            self.dtype,
            self.convertible.merge_name,
            self.convertible.calibration,
        )
        digest = loaded.digest(documents)
        return identity.key(kv_heads, task, documents, task_version=loaded.version, digest=digest)

    def score(self, kv_heads: KVHeads, task: TaskSpec, documents: Documents) -> Score:
        """Score the model with ``kv_heads`` per layer on the chosen documents.

        Raises:
            MaskError: ``kv_heads`` does not fit the model.
            ScoreError: a log-likelihood or a metric is NaN or infinite.
        """
        prepared = self.library.task(task, documents).prepare(documents)
        started = time.perf_counter()
        responses, comparisons = self.compared(kv_heads, prepared)
        return score_of(prepared, responses, time.perf_counter() - started, comparisons)

    def score_many(
        self, masks: Sequence[KVHeads], task: TaskSpec, documents: Documents
    ) -> list[Score | NoScore]:
        """Score the masks one after the other.

        Raises:
            MaskError: a mask does not fit the model.
        """
        return score_each(self, masks, task, documents)

    def gains_from_many(self) -> bool:
        """False: nothing is shared between masks."""
        return False

    def saved_layer_tokens(self, kv_heads: KVHeads) -> int:
        """0: no states are kept."""
        return 0

    def score_in_parts(
        self,
        kv_heads: KVHeads,
        task: TaskSpec,
        documents: Documents,
        part: int,
        known: Score | None = None,
    ) -> Iterator[Score]:
        """Score the chosen documents ``part`` at a time, each time yielding the score so far.

        Each score is equal to that of ``score`` at a smaller limit; the last one is of all
        documents.

        Args:
            kv_heads, task, documents: as in ``score``.
            part: number of documents at a time.
            known: the score of a smaller limit. It is yielded first, and its documents are not
                scored again. If that is not possible (see ``known_rows``), all documents are
                scored.

        Raises:
            MaskError, ScoreError: as in ``score``.
        """
        prepared = self.library.task(task, documents).prepare(documents)
        rows: list[Row] = []
        seconds = 0.0
        if known is not None and (rows := known_rows(prepared, known)):
            seconds = known.seconds
            yield known
        for start in range(len(rows), len(prepared.documents), part):
            started = time.perf_counter()
            piece = prepared.part(start, start + part)
            rows += rows_of(piece, *self.compared(kv_heads, piece))
            seconds += time.perf_counter() - started
            yield score_of_rows(prepared, rows, seconds)

    def responses(self, kv_heads: KVHeads, prepared: PreparedTask) -> list[list[Any]]:
        """The answers of the model with ``kv_heads`` per layer: per document, per request.

        An answer is ``(log-likelihood, is greedy)``, a log-likelihood (rolling) or a text
        (generation).

        Raises:
            MaskError: ``kv_heads`` does not fit the model.
        """
        with self.convertible.converted(kv_heads):
            answers = iter(self._respond(prepared.instances))
        return [[next(answers) for _ in document.instances] for document in prepared.documents]

    def compared(
        self, kv_heads: KVHeads, prepared: PreparedTask
    ) -> tuple[Responses, list[Comparison | None]]:
        """``responses``, and a comparison with the original's responses for each document.

        The comparison is None for a document whose type of task is not compared.

        Raises:
            MaskError: ``kv_heads`` does not fit the model.
        """
        documents = [d for d in prepared.documents if is_compared(d.task)]
        original = self.shape.original
        unknown = tuple(d for d in documents if d not in self._original)
        if unknown and kv_heads != original:
            part = replace(prepared, documents=unknown)
            self._original |= dict(zip(unknown, self.responses(original, part), strict=True))
        responses = self.responses(kv_heads, prepared)
        if kv_heads == original:
            self._original |= dict(zip(prepared.documents, responses, strict=True))
        apart = self._divergences(kv_heads, documents)
        found = {
            document: Comparison(self._original[document], divergences)
            for document, divergences in zip(documents, apart, strict=True)
        }
        return responses, [found.get(document) for document in prepared.documents]

    def passages(self, document: PreparedDocument) -> tuple[Passage, ...]:
        """The passages in which next-token distributions are compared with the original's."""
        if document not in self._passages:
            chosen = document.instances[compared_request(document, gold_choices(document))]
            whole = chosen.request_type != "loglikelihood_rolling"
            pairs = self.lm.token_pairs(chosen)
            self._passages[document] = tuple(Passage(pair, whole) for pair in pairs)
        return self._passages[document]

    def _divergences(
        self, kv_heads: KVHeads, documents: Sequence[PreparedDocument]
    ) -> list[tuple[Divergence, ...]]:
        """The divergences of each document's passages; empty for the original itself.

        This class runs a plain forward pass of both models, text by text.
        """
        if kv_heads == self.shape.original:
            return [()] * len(documents)
        return [
            tuple(self._divergence(kv_heads, passage) for passage in self.passages(document))
            for document in documents
        ]

    @torch.inference_mode()
    def _divergence(self, kv_heads: KVHeads, passage: Passage) -> Divergence:
        context, continuation = passage.pair
        window = (context + continuation)[-(self.lm.max_length + 1) :][:-1]
        tokens = torch.tensor([window], device=self.convertible.model.device)
        logits = []
        for heads in (self.shape.original, kv_heads):
            with self.convertible.converted(heads) as model:
                logits.append(model(tokens, use_cache=False).logits[0].float().log_softmax(dim=-1))
        before, after = logits
        apart = (before.exp() * (before - after)).sum(dim=-1).double()
        answer = apart[-len(continuation) :]
        counted = apart if passage.whole else answer
        return Divergence(counted.sum().item(), len(counted), answer.sum().item(), len(answer))

    def _respond(self, instances: Sequence[Instance]) -> list[Any]:
        """The answers of the model, as it is converted now, to lm-eval's requests, in order."""
        by_type: dict[str, list[int]] = {}
        for index, instance in enumerate(instances):
            by_type.setdefault(instance.request_type, []).append(index)
        responses: list[Any] = [None] * len(instances)
        for request_type, indices in by_type.items():
            ask = getattr(self.lm, request_type)
            answers = ask([instances[index] for index in indices], disable_tqdm=True)
            for index, answer in zip(indices, answers, strict=True):
                responses[index] = answer
        return responses
