"""Benchmarks as lm-eval has them: tasks, documents and their splits, prompts, metrics."""

from mqasearch.tasks.calibration_text import calibration_tokens, right_text
from mqasearch.tasks.comparison import Comparison, Passage, compared_request, is_compared
from mqasearch.tasks.metrics import (
    Responses,
    Row,
    gold_choices,
    higher_is_better,
    known_rows,
    rows_of,
    score_of,
    score_of_rows,
)
from mqasearch.tasks.offline import all_task_names, offline_task_names
from mqasearch.tasks.prepared import PreparedDocument, PreparedTask, TaskLibrary

__all__ = [
    "Comparison",
    "Passage",
    "PreparedDocument",
    "PreparedTask",
    "Responses",
    "Row",
    "TaskLibrary",
    "all_task_names",
    "calibration_tokens",
    "compared_request",
    "gold_choices",
    "higher_is_better",
    "is_compared",
    "known_rows",
    "offline_task_names",
    "right_text",
    "rows_of",
    "score_of",
    "score_of_rows",
]
