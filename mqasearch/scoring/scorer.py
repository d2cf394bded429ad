"""The interface of scorers, as a search needs it."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from mqasearch.errors import ScoreError
from mqasearch.mask import KVHeads, ModelShape
from mqasearch.score import Documents, NoScore, Score, ScoreKey, TaskSpec


class Scorer(Protocol):
    """Scores one model with any number of KV heads per layer.

    One scorer lives as long as its worker. ``key`` and ``score`` may be called in any order and
    any number of times; both prepare a task's documents on its first use and keep them.
    """

    @property
    def shape(self) -> ModelShape:
        """Shape of the original model."""
        ...

    @property
    def model(self) -> str:
        """Fingerprint of the original weights."""
        ...

    @property
    def tokenizer(self) -> str:
        """Digest of the tokenizer; empty if there is none."""
        ...

    def key(self, kv_heads: KVHeads, task: TaskSpec, documents: Documents) -> ScoreKey:
        """The key under which the result of ``score`` may be shared; never runs the model."""
        ...

    def score(self, kv_heads: KVHeads, task: TaskSpec, documents: Documents) -> Score:
        """Score the model with ``kv_heads`` per layer.

        Raises:
            MaskError: ``kv_heads`` does not fit the model.
            ScoreError: a log-likelihood or a metric is NaN or infinite.
        """
        ...

    def score_many(
        self, masks: Sequence[KVHeads], task: TaskSpec, documents: Documents
    ) -> list[Score | NoScore]:
        """The result of ``score`` for each mask, in their order; NoScore if a mask has no score.

        Raises:
            MaskError: a mask does not fit the model.
        """
        ...

    def gains_from_many(self) -> bool:
        """Whether ``score_many`` costs less than scoring one mask after the other."""
        ...

    def saved_layer_tokens(self, kv_heads: KVHeads) -> int:
        """How much of the work of scoring a mask is saved by states kept from earlier scores.

        It is counted in tokens times the layers that they need not be run through.
        """
        ...

    def score_in_parts(
        self,
        kv_heads: KVHeads,
        task: TaskSpec,
        documents: Documents,
        part: int,
        known: Score | None = None,
    ) -> Iterator[Score]:
        """Score ``part`` documents at a time, each time yielding the score of all so far.

        Args:
            kv_heads, task, documents: as in ``score``.
            part: number of documents at a time.
            known: the score of a smaller limit. If the scorer can go on from it, it is yielded
                first, and its documents are not scored again.

        Raises:
            MaskError, ScoreError: as in ``score``.
        """
        ...


def score_each(
    scorer: Scorer, masks: Sequence[KVHeads], task: TaskSpec, documents: Documents
) -> list[Score | NoScore]:
    """``score_many`` for a scorer that shares nothing between masks.

    Raises:
        MaskError: a mask does not fit the model.
    """
    found: list[Score | NoScore] = []
    for kv_heads in masks:
        try:
            found.append(scorer.score(kv_heads, task, documents))
        except ScoreError as error:
            found.append(NoScore(str(error)))
    return found
