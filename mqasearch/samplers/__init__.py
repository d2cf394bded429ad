"""Selectors: samplers that propose which layers to convert.

Made by :func:`sampler_of`; :class:`MaskSampler` is the seam for a new one.
"""

from mqasearch.samplers.base import MaskSampler, Outlook
from mqasearch.samplers.history import (
    INVALID_KEY,
    MASK_KEY,
    HistoryReader,
    MaskState,
    MaskTrial,
    mask_of,
)
from mqasearch.samplers.planned import Plan, PlannedSampler
from mqasearch.samplers.registry import (
    PLANNED,
    RECOMMENDED,
    SELECTORS,
    check_parameters,
    parameters_of,
    sampler_of,
)
from mqasearch.samplers.space import mask_params, param_name, search_space

__all__ = [
    "INVALID_KEY",
    "MASK_KEY",
    "PLANNED",
    "RECOMMENDED",
    "SELECTORS",
    "HistoryReader",
    "MaskSampler",
    "MaskState",
    "MaskTrial",
    "Outlook",
    "Plan",
    "PlannedSampler",
    "check_parameters",
    "mask_of",
    "mask_params",
    "param_name",
    "parameters_of",
    "sampler_of",
    "search_space",
]
