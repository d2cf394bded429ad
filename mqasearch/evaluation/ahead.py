"""Scores some masks ahead of their trials if several at once cost less than one by one."""

from collections.abc import Sequence

from mqasearch.errors import ScoreError
from mqasearch.mask import KVHeads
from mqasearch.score import Documents, NoScore, Score, ScoreKey, TaskSpec
from mqasearch.scores import Claims
from mqasearch.scoring import Scorer

SECONDS = 120.0
"""About how long masks may be scored together; all of it is lost if the worker is killed."""

MOST = 64
"""The most masks that are scored together: others may have to wait for the claim on each."""


class Ahead:
    """Scores a mask together with others that will be asked for.

    A score that is computed ahead of its trial is put in the database like any other. The trial
    finds it there, whichever worker runs the trial.
    """

    def __init__(self, scorer: Scorer, claims: Claims) -> None:
        self._scorer = scorer
        self._claims = claims
        self._seconds: dict[tuple[str, Documents], float] = {}
        """Task name and documents → seconds that the last mask took."""
        self._mine: set[str] = set()

    def score(
        self, kv_heads: KVHeads, task: TaskSpec, documents: Documents, others: Sequence[KVHeads]
    ) -> Score:
        """Score a mask, whose key the caller has claimed, and some of the others with it.

        Args:
            kv_heads, task, documents: as in ``Scorer.score``.
            others: masks that will be asked for; their scores go to the database.

        Returns:
            The score of ``kv_heads``.

        Raises:
            ScoreError: ``kv_heads`` has no score.
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
        """Whether this worker scored ``key`` ahead; True only the first time that it is asked."""
        digest = key.digest()
        found = digest in self._mine
        self._mine.discard(digest)
        return found

    def _room(self, task: TaskSpec, documents: Documents) -> int:
        """Number of masks to score together with the one that is asked for."""
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
                if isinstance(one, Score):  # else the mask's own trial reports the fault
                    self._claims.store.put(key, one)
                    self._mine.add(key.digest())
        if isinstance(score, NoScore):
            raise ScoreError(score.fault)
        return score
