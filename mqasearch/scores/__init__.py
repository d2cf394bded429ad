"""Scores in the database, and claims: who computes one that is missing."""

from mqasearch.scores.claims import Claims
from mqasearch.scores.store import ScoreStore

__all__ = ["Claims", "ScoreStore"]
