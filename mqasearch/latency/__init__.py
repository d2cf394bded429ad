"""Latency and memory against the number of converted layers (RQ1), in transformers or an engine."""

from mqasearch.latency.engine_runner import check_engine, default_batch_sizes
from mqasearch.latency.figure import check_figure_path, write_figure
from mqasearch.latency.measuring import measure
from mqasearch.latency.workload import Workload, along_front, numbers_of_heads, shares_of_layers

__all__ = [
    "Workload",
    "along_front",
    "check_engine",
    "check_figure_path",
    "default_batch_sizes",
    "measure",
    "numbers_of_heads",
    "shares_of_layers",
    "write_figure",
]
