"""Scores of fewer documents, to go on from: a smaller limit is a prefix of a larger one."""

from collections.abc import Sequence
from dataclasses import replace

from mqasearch.evaluation.racing import StopRule
from mqasearch.mask import KVHeads
from mqasearch.score import Documents, Score, ScoreKey, TaskSpec
from mqasearch.scores import ScoreStore
from mqasearch.scoring import Scorer


class KnownPrefixes:
    """Finds what is known of a mask's first documents.

    Which numbers of documents occur in the database is asked once a task, when the first mask is
    scored: that is a question to the whole table, and other studies rarely begin meanwhile.
    """

    def __init__(self, scorer: Scorer, store: ScoreStore, rule: StopRule | None) -> None:
        """
        Args:
            scorer: makes the keys.
            store: of the scores.
            rule: by which this study's races end; where they do is known without asking.
        """
        self._scorer = scorer
        self._store = store
        self._rule = rule
        self._limits: dict[tuple[TaskSpec, Documents], Sequence[int]] = {}

    def longest(self, kv_heads: KVHeads, task: TaskSpec, documents: Documents) -> Score | None:
        """The score of most of the first documents, if any but not all are scored.

        Raises:
            DatabaseAwayError: the database stayed away.
        """
        found = self._known([kv_heads], task, documents)
        return max(found.values(), key=lambda score: score.n_docs, default=None)

    def without(
        self, masks: Sequence[KVHeads], task: TaskSpec, documents: Documents
    ) -> list[KVHeads]:
        """Those of several masks of which no first documents are scored.

        Raises:
            DatabaseAwayError: the database stayed away.
        """
        begun = {key.kv_heads for key in self._known(masks, task, documents)}
        return [kv_heads for kv_heads in masks if kv_heads not in begun]

    def _known(
        self, masks: Sequence[KVHeads], task: TaskSpec, documents: Documents
    ) -> dict[ScoreKey, Score]:
        if masks and (task, documents) not in self._limits:
            self._limits[task, documents] = self._known_limits(masks[0], task, documents)
        keys = [
            self._scorer.key(kv_heads, task, replace(documents, limit=limit))
            for kv_heads in masks
            for limit in self._limits.get((task, documents), ())
        ]
        return self._store.get_many(keys) if keys else {}

    def _known_limits(
        self, kv_heads: KVHeads, task: TaskSpec, documents: Documents
    ) -> Sequence[int]:
        """Numbers of documents that were scored and are a prefix of ``documents``."""
        key = self._scorer.key(kv_heads, task, documents)
        limits = {
            n_docs
            for digest, n_docs in self._store.document_sets(key)
            if n_docs < (documents.limit or n_docs + 1)
            and digest != key.documents
            and digest
            == self._scorer.key(kv_heads, task, replace(documents, limit=n_docs)).documents
        }
        if self._rule is not None and documents.limit is not None:
            limits |= set(range(self._rule.part, documents.limit, self._rule.part))
        return sorted(limits)
