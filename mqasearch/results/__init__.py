"""Scores in SQL, beside Optuna's tables in the same database.

Any study and any worker may reuse a score, since its key says all that it depends on
(:class:`mqasearch.score.ScoreKey`). This package knows neither Optuna nor torch.
"""

from mqasearch.results.patience import Patience
from mqasearch.results.store import ScoreStore

__all__ = ["Patience", "ScoreStore"]
