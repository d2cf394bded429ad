"""A score as a row of the database, and back."""

import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from mqasearch.errors import ScoreError, StorageError
from mqasearch.score import Score, ScoreKey

COMPRESSION = 1
"""zlib's quickest level: the digits of floats hardly compress better at the others."""


MOST_BYTES = 2**26
"""Most bytes of one score's unpacked values: a hundred thousand documents in thirty metrics."""


def row_of(key: ScoreKey, score: Score) -> dict[str, Any]:
    """The columns of ``mqasearch_score`` for one score.

    Raises:
        ScoreError: a mean or a value of a document is NaN or infinite. Such a score must not be
            kept: it would be handed out for ever.
    """
    for metric, mean in score.values.items():
        values = score.documents.get(metric, ())
        if not math.isfinite(mean) or not all(map(math.isfinite, values)):
            raise ScoreError(f"{metric} of {key.task} is not finite ({mean}); it is not kept")
    return {
        **asdict(key),
        "kv_heads": ",".join(map(str, key.kv_heads)),
        "digest": key.digest(),
        "metrics": {metric: float(mean) for metric, mean in score.values.items()},
        "stderr": {
            metric: float(error) if math.isfinite(error) else None
            for metric, error in score.stderr.items()
        },
        "n_docs": score.n_docs,
        "seconds": score.seconds,
        "per_document": pack(score.documents),
    }


def score_of(row: Mapping[str, Any]) -> Score:
    """The inverse of :func:`row_of`; floats come back exactly."""
    return Score(
        values=row["metrics"],
        stderr={
            metric: math.nan if error is None else error for metric, error in row["stderr"].items()
        },
        n_docs=row["n_docs"],
        seconds=row["seconds"],
        documents=unpack(row["per_document"]),
    )


def pack(documents: Mapping[str, tuple[float, ...]]) -> bytes:
    """Per-document values, compressed. JSON and not pickle, since the database may be anybody's."""
    lists = {metric: list(map(float, values)) for metric, values in documents.items()}
    text = json.dumps(lists, separators=(",", ":"), allow_nan=False)
    return zlib.compress(text.encode(), COMPRESSION)


def unpack(blob: bytes) -> dict[str, tuple[float, ...]]:
    """The inverse of :func:`pack`.

    Raises:
        StorageError: it unpacks to more than any score takes; a few bytes could fill the memory.
    """
    unpacking = zlib.decompressobj()
    text = unpacking.decompress(blob, MOST_BYTES)
    if unpacking.unconsumed_tail:
        raise StorageError(
            f"a score in the database unpacks to more than {MOST_BYTES // 2**20} MiB, which no "
            "mqasearch has written; find out who did, and delete its row"
        )
    lists = json.loads(text)
    return {metric: tuple(values) for metric, values in lists.items()}
