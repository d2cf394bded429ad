"""Fewer KV heads without training: merges, the statistics they read, the convertible model."""

from mqasearch.conversion.calibration import calibrate
from mqasearch.conversion.convertible import ConvertibleModel, HealedLayers, divisors
from mqasearch.conversion.merge import Merge
from mqasearch.conversion.registry import MERGES, merge_of
from mqasearch.conversion.statistics import LayerStatistics, Place, Statistics, threads

__all__ = [
    "MERGES",
    "ConvertibleModel",
    "HealedLayers",
    "LayerStatistics",
    "Merge",
    "Place",
    "Statistics",
    "calibrate",
    "divisors",
    "merge_of",
    "threads",
]
