"""Scores of masks: from the database where anybody has them, from the scorer where nobody has."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from mqasearch.errors import ScoreError
from mqasearch.evaluation.scorer import Scorer
from mqasearch.mask import KVHeads, LayerMask
from mqasearch.score import Documents, Score, Split, TaskSpec
from mqasearch.search.claims import Claims


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Scores of one mask.

    Attributes:
        scores: task name → score.
        seconds: spent on scores that were not in the database.
        reused: every score was in the database.
    """

    scores: Mapping[str, Score]
    seconds: float
    reused: bool


class Evaluator:
    """Scores masks and keeps the scores; no mask is scored twice, whoever else is at work."""

    def __init__(
        self,
        scorer: Scorer,
        claims: Claims,
        tasks: Sequence[TaskSpec],
        *,
        target_kv_heads: int = 1,
        search_split: Split = "search",
        seed: int = 0,
    ) -> None:
        self.scorer = scorer
        self.claims = claims
        self.tasks = tuple(tasks)
        self.target_kv_heads = target_kv_heads
        self.search_split = search_split
        self.seed = seed
        self._original_value: float | None = None

    def evaluate(self, mask: LayerMask) -> Evaluation:
        """Score a mask on the search documents of every task.

        Raises:
            ScoreError: a score is NaN or infinite.
        """
        return self._evaluate(mask, {t.name: self.search_documents(t) for t in self.tasks})

    def confirm(self, mask: LayerMask, limit: int | None) -> Evaluation:
        """Score a mask on ``limit`` documents of every task that the search never sees."""
        documents = Documents("confirmation", limit, self.seed)
        return self._evaluate(mask, {task.name: documents for task in self.tasks})

    def search_documents(self, task: TaskSpec) -> Documents:
        """The documents that the search scores on a task."""
        return Documents(self.search_split, task.limit, self.seed)

    def objective(self, scores: Mapping[str, Score]) -> float:
        """Weighted mean of each task's metric."""
        total = sum(task.weight for task in self.tasks)
        return sum(t.weight * scores[t.name].values[t.metric] for t in self.tasks) / total

    def original_value(self) -> float:
        """The objective of the unconverted model, scored at most once."""
        if self._original_value is None:
            original = LayerMask.empty(self.scorer.shape.n_layers)
            self._original_value = self.objective(self.evaluate(original).scores)
        return self._original_value

    def _evaluate(self, mask: LayerMask, documents: Mapping[str, Documents]) -> Evaluation:
        kv_heads = mask.kv_heads(self.scorer.shape, self.target_kv_heads)
        scores: dict[str, Score] = {}
        seconds, reused = 0.0, True
        for task in self.tasks:
            key = self.scorer.key(kv_heads, task, documents[task.name])
            compute = partial(self._compute, mask, kv_heads, task, documents[task.name])
            score, is_new = self.claims.get_or_score(key, compute)
            if is_new:
                seconds, reused = seconds + score.seconds, False
            scores[task.name] = score
        return Evaluation(scores, seconds, reused)

    def _compute(
        self, mask: LayerMask, kv_heads: KVHeads, task: TaskSpec, documents: Documents
    ) -> Score:
        score = self.scorer.score(kv_heads, task, documents)
        _check_finite(mask, task, score)
        return score


def _check_finite(mask: LayerMask, task: TaskSpec, score: Score) -> None:
    for metric, value in score.values.items():
        if not math.isfinite(value):
            raise ScoreError(f"{task.name}: {metric} of mask {mask} is {value}")
