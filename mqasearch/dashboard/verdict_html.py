"""The verdict of a study file, on the page of each of its comparisons."""

import logging
from collections.abc import Mapping
from typing import Any

from optuna.storages import BaseStorage

from mqasearch.errors import MqasearchError
from mqasearch.study import Size, Verdict, sentence, size_in_words, studies_of_file, verdict

logger = logging.getLogger(__name__)


def read_verdict(storage: BaseStorage, comparison: str) -> Verdict | None:
    """The verdict of the study file that a comparison is from; None without a tolerance.

    Also None if an attribute of another version cannot be read, since the page has more to show.
    """
    try:
        return verdict(studies_of_file(storage, comparison))
    except (MqasearchError, LookupError, TypeError, ValueError, AttributeError) as error:
        logger.debug("no verdict of %s: %s: %s", comparison, type(error).__name__, error)
        return None


def verdict_table(found: Verdict | None) -> Mapping[str, Any] | None:
    """The sentence and a row for every size; None without a verdict."""
    if found is None:
        return None
    return {
        "sentence": sentence(found),
        "head": ("layers", "KV cache", "comparison", "selector", "held-out", "verdict"),
        "rows": [_row(size, found) for size in found.sizes],
    }


def _row(size: Size, found: Verdict) -> tuple[str, ...]:
    return (
        f"{size.n_converted} of {size.n_layers}",
        f"−{100 * size.kv_bytes_saved:.0f} %",
        size.comparison,
        size.selector,
        size_in_words(size),
        size.result if found.is_final else "not yet",
    )
