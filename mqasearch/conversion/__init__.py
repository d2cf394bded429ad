"""Fewer KV heads without training: merges, the statistics they read, the convertible model."""

from mqasearch.conversion.aligned import Alignment
from mqasearch.conversion.aligned_keys import RotaryKeys
from mqasearch.conversion.aligned_subspace import Subspace
from mqasearch.conversion.calibration import calibrate
from mqasearch.conversion.convertible import ConvertibleModel, HealedLayers, divisors
from mqasearch.conversion.layer_statistics import LayerStatistics, Place, Statistics, threads
from mqasearch.conversion.merge import Merge
from mqasearch.conversion.merges import MERGES, merge_of
from mqasearch.conversion.normal_equations import RIDGE
from mqasearch.conversion.pooling import augmented, grouped, select_kv_heads
from mqasearch.conversion.refit import (
    calibration_batches,
    least_tokens,
    refit_layers,
    refit_sequential,
    run_base,
)
from mqasearch.conversion.text_batches import TokenBatch, token_batches
from mqasearch.conversion.trained_layer import (
    TrainedLayer,
    all_installed,
    frozen,
    learning_rate,
    rate_at,
)

__all__ = [
    "MERGES",
    "RIDGE",
    "Alignment",
    "ConvertibleModel",
    "HealedLayers",
    "LayerStatistics",
    "Merge",
    "Place",
    "RotaryKeys",
    "Statistics",
    "Subspace",
    "TokenBatch",
    "TrainedLayer",
    "all_installed",
    "augmented",
    "calibrate",
    "calibration_batches",
    "divisors",
    "frozen",
    "grouped",
    "learning_rate",
    "least_tokens",
    "merge_of",
    "rate_at",
    "refit_layers",
    "refit_sequential",
    "run_base",
    "select_kv_heads",
    "threads",
    "token_batches",
]
