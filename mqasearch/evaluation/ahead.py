"""Scoring some masks ahead of their trials, where several at once cost less than one by one."""

from collections.abc import Sequence

from mqasearch.errors import ScoreError
from mqasearch.mask import KVHeads
from mqasearch.score import Documents, NoScore, Score, ScoreKey, TaskSpec
from mqasearch.scores import Claims
from mqasearch.scoring import Scorer

SECONDS = 120.0
"""Of scoring at once, about: all of it is lost if the worker is killed meanwhile."""

MOST = 64
"""Masks at once: each is a claim that others may have to wait for."""


class Ahead:
    """Scores a mask together with others that will be asked for.

    A score found ahead of its trial lies in the database like any other; the trial finds it there,
    whichever worker runs it.
    """

    def __init__(self, scorer: Scorer, claims: Claims) -> None:
        self._scorer = scorer
        self._claims = claims
        self._seconds: dict[tuple[str, Documents], float] = {}
        """What one mask took last."""
        self._mine: set[str] = set()

    def score(
        self, kv_heads: KVHeads, task: TaskSpec, documents: Documents, others: Sequence[KVHeads]
    ) -> Score:
        """The score of one mask, whose key is claimed; those of some others go to the database.

        Raises:
            ScoreError: the one mask has no score.
            DatabaseAwayError: the database stayed away.
        """
        n_others = self._room(task, documents) if others and self._scorer.gains_from_many() else 0
        if not n_others:
            score = self._scorer.score(kv_heads, task, documents)
        else:
            score = self._score_together(kv_heads, task, documents, others[:n_others])
        self._seconds[task.name, documents] = score.seconds
        return score

    def was_mine(self, key: ScoreKey) -> bool:
        """Whether this worker scored ``key`` ahead, asked for the first time."""
        digest = key.digest()
        found = digest in self._mine
        self._mine.discard(digest)
        return found

    def _room(self, task: TaskSpec, documents: Documents) -> int:
        """Masks to score beside one."""
        seconds = self._seconds.get((task.name, documents))
        if seconds is None:  # the first mask tells how long one takes
            return 0
        return min(MOST, int(SECONDS / max(seconds, 1e-3))) - 1

    def _score_together(
        self, kv_heads: KVHeads, task: TaskSpec, documents: Documents, others: Sequence[KVHeads]
    ) -> Score:
        keys = {self._scorer.key(other, task, documents): other for other in others}
        with self._claims.holding(list(keys)) as held:
            masks = [kv_heads, *(keys[key] for key in held)]
            score, *further = self._scorer.score_many(masks, task, documents)
            for key, one in zip(held, further, strict=True):
                if isinstance(one, Score):  # else its own trial meets the fault
                    self._claims.store.put(key, one)
                    self._mine.add(key.digest())
        if isinstance(score, NoScore):
            raise ScoreError(score.fault)
        return score
