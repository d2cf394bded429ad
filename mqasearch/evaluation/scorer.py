"""What a search needs of whatever scores a mask."""

from collections.abc import Iterator
from typing import Protocol

from mqasearch.mask import KVHeads, ModelShape
from mqasearch.score import Documents, Score, ScoreKey, TaskSpec


class Scorer(Protocol):
    """Scores one model with any number of KV heads per layer.

    One scorer lives as long as its worker. ``key`` and ``score`` may be called in any order and
    any number of times; both prepare a task's documents on its first use and keep them.
    """

    @property
    def shape(self) -> ModelShape:
        """Sizes of the original model."""
        ...

    @property
    def model(self) -> str:
        """Fingerprint of the original weights."""
        ...

    def key(self, kv_heads: KVHeads, task: TaskSpec, documents: Documents) -> ScoreKey:
        """The key under which ``score``'s answer may be shared; never runs the model."""
        ...

    def score(self, kv_heads: KVHeads, task: TaskSpec, documents: Documents) -> Score:
        """Score the model with ``kv_heads`` per layer.

        Raises:
            MaskError: ``kv_heads`` does not fit the model.
            ScoreError: a log-likelihood or a metric is NaN or infinite.
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
            part: documents at a time.
            known: the score of a smaller limit, yielded first and built upon where that can be.

        Raises:
            MaskError, ScoreError: as ``score``.
        """
        ...
