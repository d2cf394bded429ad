"""The offline model and benchmarks, and the cache folder they are kept in."""

from mqasearch.assets.cache import CACHE_VARIABLE, build_once, cache_dir
from mqasearch.assets.wheels import benchmark_data, smollm2_gguf

__all__ = [
    "CACHE_VARIABLE",
    "benchmark_data",
    "build_once",
    "cache_dir",
    "smollm2_gguf",
]
