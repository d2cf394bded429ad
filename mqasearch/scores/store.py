"""Scores that all studies and workers share."""

from collections.abc import Iterable
from dataclasses import fields
from functools import partial
from typing import cast

from sqlalchemy import Engine, Table, delete, select

from mqasearch.database import ClaimRow, Patience, ScoreRow, for_reading, insert_if_absent
from mqasearch.score import Score, ScoreKey
from mqasearch.scores.score_rows import row_of, score_of

TABLE = cast(Table, ScoreRow.__table__)

CLAIMS = cast(Table, ClaimRow.__table__)

COLUMNS = [
    TABLE.c[name] for name in ("digest", "metrics", "stderr", "n_docs", "seconds", "per_document")
]

KEYS_PER_QUERY = 500
"""SQLite and PostgreSQL limit the number of parameters of one statement."""


class ScoreStore:
    """The table ``mqasearch_score``.

    Any number of processes may read and write it at once. The first writer of a key wins, so that
    everybody who asks for it, now or later, gets the same numbers. Nothing is ever changed or
    deleted.

    Example:
        >>> from sqlalchemy import create_engine
        >>> from mqasearch.database import schema
        >>> from mqasearch.score import Documents, TaskSpec
        >>> from mqasearch.scoring import FakeScorer
        >>> engine = create_engine("sqlite://")
        >>> schema.upgrade(engine)
        >>> scorer = FakeScorer(3)
        >>> asked = ((1, 4, 4), TaskSpec("hellaswag"), Documents("search", 9))
        >>> store = ScoreStore(engine)
        >>> store.get(scorer.key(*asked)) is None
        True
        >>> store.put(scorer.key(*asked), scorer.score(*asked)).n_docs
        9

    Args:
        engine: engine of a database with the schema of :func:`mqasearch.database.schema.upgrade`.
        patience: how long to wait for a database that is away.
    """

    def __init__(self, engine: Engine, patience: Patience | None = None) -> None:
        self._engine = engine
        self._patience = patience or Patience()

    def get(self, key: ScoreKey) -> Score | None:
        """The score under ``key``, None if nobody has scored it yet.

        Raises:
            DatabaseAwayError: the database stayed away.
        """
        return self.get_many([key]).get(key)

    def get_many(self, keys: Iterable[ScoreKey]) -> dict[ScoreKey, Score]:
        """The scores that exist among ``keys``.

        Raises:
            DatabaseAwayError: the database stayed away.
        """
        by_digest = {key.digest(): key for key in keys}
        digests = list(by_digest)
        found: dict[str, Score] = {}
        for start in range(0, len(digests), KEYS_PER_QUERY):
            chunk = digests[start : start + KEYS_PER_QUERY]
            found |= self._patience(partial(self._read, chunk))
        return {by_digest[digest]: score for digest, score in found.items()}

    def document_sets(self, key: ScoreKey) -> set[tuple[str, int]]:
        """Digest and number of the documents of every score that is like ``key``.

        Heads and documents may differ; everything else that a score depends on is the same.

        Reads the whole table.

        Raises:
            DatabaseAwayError: the database stayed away.
        """
        same = [
            TABLE.c[field.name] == getattr(key, field.name)
            for field in fields(ScoreKey)
            if field.name not in ("kv_heads", "documents")
        ]
        query = select(TABLE.c.documents, TABLE.c.n_docs).where(*same).distinct()

        def once() -> set[tuple[str, int]]:
            with for_reading(self._engine).connect() as connection:
                return {(row.documents, row.n_docs) for row in connection.execute(query)}

        return self._patience(once)

    def put(self, key: ScoreKey, score: Score) -> Score:
        """Keep ``score`` unless ``key`` has one already, and return the one that is kept.

        A claim on the key, if there is one, ends with it. A second call with the same arguments
        changes nothing, so that a call whose answer was lost may be made again.

        Raises:
            ScoreError: the score is not finite.
            DatabaseAwayError: the database stayed away.
        """
        row = row_of(key, score)
        if self._patience(partial(self._insert, row)):
            return score_of(row)
        kept = self.get(key)
        assert kept is not None, "a score is never deleted"
        return kept

    def _insert(self, row: dict[str, object]) -> bool:
        with self._engine.begin() as connection:
            connection.execute(delete(CLAIMS).where(CLAIMS.c.digest == row["digest"]))
            return insert_if_absent(connection, TABLE, [row]) == 1

    def _read(self, digests: list[str]) -> dict[str, Score]:
        with for_reading(self._engine).connect() as connection:
            rows = connection.execute(select(*COLUMNS).where(TABLE.c.digest.in_(digests)))
            return {row.digest: score_of(row._asdict()) for row in rows}
