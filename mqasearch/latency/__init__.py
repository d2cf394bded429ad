"""Latency and memory against the number of converted layers (RQ1), in transformers or an engine."""

from mqasearch.latency.budget_check import (
    BudgetCheck,
    TimeBudget,
    check_budget,
    finalists,
    time_budget,
)
from mqasearch.latency.engine_runner import check_engine, default_batch_sizes
from mqasearch.latency.figure import check_figure_path, write_figure
from mqasearch.latency.measuring import measure
from mqasearch.latency.transformers_runner import TRANSFORMERS
from mqasearch.latency.workload import Workload, along_front, numbers_of_heads, shares_of_layers

__all__ = [
    "TRANSFORMERS",
    "BudgetCheck",
    "TimeBudget",
    "Workload",
    "along_front",
    "check_budget",
    "check_engine",
    "check_figure_path",
    "default_batch_sizes",
    "finalists",
    "measure",
    "numbers_of_heads",
    "shares_of_layers",
    "time_budget",
    "write_figure",
]
