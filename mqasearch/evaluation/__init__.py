"""Evaluates masks: scores from the database or a scorer, races, and standard errors."""

from mqasearch.evaluation.confirmation_rows import against
from mqasearch.evaluation.evaluator import Evaluation, Evaluator
from mqasearch.evaluation.racing import StopRule
from mqasearch.evaluation.uncertainty import stderrs

__all__ = ["Evaluation", "Evaluator", "StopRule", "against", "stderrs"]
