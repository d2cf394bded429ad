"""Methods that give a layer fewer KV heads, in closed form, and the statistics that they read."""

from mqasearch.merging.aligned import Alignment
from mqasearch.merging.aligned_keys import RotaryKeys
from mqasearch.merging.aligned_subspace import Subspace
from mqasearch.merging.layer_statistics import LayerStatistics, Place, Statistics, threads
from mqasearch.merging.merge import Merge
from mqasearch.merging.merges import MERGES, merge_of
from mqasearch.merging.pooling import augmented, grouped, select_kv_heads

__all__ = [
    "MERGES",
    "Alignment",
    "LayerStatistics",
    "Merge",
    "Place",
    "RotaryKeys",
    "Statistics",
    "Subspace",
    "augmented",
    "grouped",
    "merge_of",
    "select_kv_heads",
    "threads",
]
