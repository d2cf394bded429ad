"""Load models by name, on a device, in a dtype, and identify them."""

from mqasearch.models.fingerprint import fingerprint_of
from mqasearch.models.loading import KV_HEADS_KEY, LoadedModel, is_remote, load_model, load_shape
from mqasearch.models.loading_bars import progress_bars
from mqasearch.models.precision import DTYPES, device_of, dtype_of
from mqasearch.models.resuming import ResumableModel
from mqasearch.models.shape import shape_of
from mqasearch.models.source import EMBEDDED, check_name, is_here, is_hub_id, resolve

__all__ = [
    "DTYPES",
    "EMBEDDED",
    "KV_HEADS_KEY",
    "LoadedModel",
    "ResumableModel",
    "check_name",
    "device_of",
    "dtype_of",
    "fingerprint_of",
    "is_here",
    "is_hub_id",
    "is_remote",
    "load_model",
    "load_shape",
    "progress_bars",
    "resolve",
    "shape_of",
]
