"""Which documents of a benchmark belong to which split, and in which order they are scored.

The split is a function of the document alone, so that it survives every change of seed, limit,
order of the file and version of the benchmark: what the search has seen can never turn up among
the documents that confirm its result, nor among the calibration texts. Equal documents share a
split.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from mqasearch.score import Documents, Split

SHARES: Mapping[Split, int] = {"search": 40, "confirmation": 40, "calibration": 20}
"""Percent of the documents in each split."""


def document_hash(document: Any) -> str:
    """SHA-256 (hex) of a document's canonical JSON."""
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()


def split_of(digest: str) -> Split:
    """The split of a document, by its hash."""
    place = int(digest[:16], 16) % 100
    for split, share in SHARES.items():
        if place < share:
            return split
        place -= share
    raise AssertionError("the shares sum to 100")


def chosen(hashes: Sequence[str], documents: Documents) -> list[int]:
    """Indices of the documents to score, in order.

    The order within a split sorts by a hash of (seed, document): every limit is a prefix of every
    larger one, whatever else the benchmark holds.

    Args:
        hashes: ``document_hash`` of every document of the benchmark.
        documents: what is asked for.
    """

    def place(index: int) -> tuple[str, int]:
        seeded = f"{documents.seed}:{hashes[index]}"
        return hashlib.sha256(seeded.encode()).hexdigest(), index

    members = [
        index
        for index, digest in enumerate(hashes)
        if documents.split in ("full", split_of(digest))
    ]
    return sorted(members, key=place)[: documents.limit]


def digest_of(hashes: Sequence[str]) -> str:
    """SHA-256 (hex) of the hashes of documents, in order."""
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()
