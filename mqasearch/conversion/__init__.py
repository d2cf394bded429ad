"""Fewer KV heads without training: merges, the statistics they read, the convertible model."""

from mqasearch.conversion.calibration import calibrate
from mqasearch.conversion.convertible import ConvertibleModel, divisors
from mqasearch.conversion.merge import Merge
from mqasearch.conversion.registry import MERGES, merge_of, stored_merge
from mqasearch.conversion.statistics import LayerStatistics, Place, Statistics, threads

__all__ = [
    "MERGES",
    "ConvertibleModel",
    "LayerStatistics",
    "Merge",
    "Place",
    "Statistics",
    "calibrate",
    "divisors",
    "merge_of",
    "stored_merge",
    "threads",
]
