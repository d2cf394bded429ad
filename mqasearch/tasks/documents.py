"""Which documents of a benchmark belong to which split, and in which order they are scored.

The split is a function of the dataset's row alone, so that it survives every change of seed,
limit, order of the file and version of the benchmark, and is the same in every task and group that
reads the row: what the search has seen can never turn up among the documents that confirm its
result, nor among the calibration texts. Equal rows share a split.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lm_eval.api.task import Task

from mqasearch.score import Documents, Split

SHARES: Mapping[Split, int] = {"search": 40, "confirmation": 40, "calibration": 20}
"""Percent of the documents in each split."""


def document_hash(document: Any) -> str:
    """SHA-256 (hex) of a document's canonical JSON."""
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()


def row_hashes(task: Task, documents: Iterable[Mapping[str, Any]]) -> list[str]:
    """SHA-256 (hex) of the row of the dataset that a task has made each document of.

    What ``process_docs`` adds to the row does not count. Where it does not keep all of the row, the
    document itself is hashed.
    """
    columns = _columns(task)
    return [
        document_hash({column: document[column] for column in columns})
        if columns and columns <= document.keys()
        else document_hash(document)
        for document in documents
    ]


def _columns(task: Task) -> frozenset[str]:
    """Of the dataset that a task scores; empty where it has none or does not name them."""
    split = task.config.test_split if task.has_test_docs() else task.config.validation_split
    try:
        return frozenset(task.dataset[split].column_names or ())
    except (AttributeError, KeyError, TypeError):  # of a task that is a Python class
        return frozenset()


def split_of(digest: str) -> Split:
    """The split of a document, by the hash of its row."""
    place = int(digest[:16], 16) % 100
    for split, share in SHARES.items():
        if place < share:
            return split
        place -= share
    raise AssertionError("the shares sum to 100")


def chosen(
    hashes: Sequence[str], documents: Documents, rows: Sequence[str] | None = None
) -> list[int]:
    """Indices of the documents to score, in order.

    The order within a split sorts by a hash of (seed, document): every limit is a prefix of every
    larger one, whatever else the benchmark holds.

    Args:
        hashes: ``document_hash`` of every document of the benchmark.
        documents: what is asked for.
        rows: ``row_hashes`` of all, which decides on its split; None = the same as ``hashes``.
    """

    def place(index: int) -> tuple[str, int]:
        seeded = f"{documents.seed}:{hashes[index]}"
        return hashlib.sha256(seeded.encode()).hexdigest(), index

    members = [
        index
        for index, digest in enumerate(hashes if rows is None else rows)
        if documents.split in _splits_with(split_of(digest))
    ]
    return sorted(members, key=place)[: documents.limit]


def _splits_with(split: Split) -> tuple[Split, ...]:
    """What a document of one of the three splits may be asked for as."""
    return (split, "full") if split == "calibration" else (split, "full", "uncalibrated")


def digest_of(hashes: Sequence[str]) -> str:
    """SHA-256 (hex) of the hashes of documents, in order."""
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()
