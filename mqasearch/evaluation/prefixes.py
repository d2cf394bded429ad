"""Finds scores of fewer documents to go on from: a smaller limit is a prefix of a larger one."""

from collections.abc import Sequence
from dataclasses import replace

from mqasearch.evaluation.racing import StopRule
from mqasearch.mask import KVHeads
from mqasearch.score import Documents, Score, ScoreKey, TaskSpec
from mqasearch.scores import ScoreStore
from mqasearch.scoring import Scorer


class KnownPrefixes:
    """Finds the known scores of a mask's first documents.

    The numbers of documents for which the database has scores are read once per task, when the
    first mask is scored: this query reads the whole table, and other studies rarely begin later.
    """

    def __init__(self, scorer: Scorer, store: ScoreStore, rule: StopRule | None) -> None:
        """
        Args:
            scorer: makes the keys.
            store: the store of the scores.
            rule: the rule by which this study's races end; it gives the numbers of documents at
                which they can end, without a query.
        """
        self._scorer = scorer
        self._store = store
        self._rule = rule
        self._limits: dict[tuple[TaskSpec, Documents], Sequence[int]] = {}

    def longest(self, kv_heads: KVHeads, task: TaskSpec, documents: Documents) -> Score | None:
        """The score of the most of the first documents; None if there is no score of fewer
        documents than all.

        Raises:
            DatabaseAwayError: the database stayed away.
        """
        found = self._known([kv_heads], task, documents)
        return max(found.values(), key=lambda score: score.n_docs, default=None)

    def without(
        self, masks: Sequence[KVHeads], task: TaskSpec, documents: Documents
    ) -> list[KVHeads]:
        """The masks, of those given, that have no score of their first documents.

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
        """Numbers of documents for which prefixes of ``documents`` were, or may be, scored."""
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
