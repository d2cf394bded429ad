"""From calibration text to fitted layers, and the live model whose layers can be swapped."""

from mqasearch.conversion.calibration import calibrate
from mqasearch.conversion.convertible import ConvertibleModel, HealedLayers, divisors
from mqasearch.conversion.normal_equations import RIDGE
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
    "RIDGE",
    "ConvertibleModel",
    "HealedLayers",
    "TokenBatch",
    "TrainedLayer",
    "all_installed",
    "calibrate",
    "calibration_batches",
    "divisors",
    "frozen",
    "learning_rate",
    "least_tokens",
    "rate_at",
    "refit_layers",
    "refit_sequential",
    "run_base",
    "token_batches",
]
