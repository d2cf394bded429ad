"""Which documents of a benchmark belong to which split, and in which order they are scored.

The split is a function of the dataset's row alone. So it does not change with the seed, the limit,
the order of the file or the version of the benchmark, and it is the same in every task and group
that reads the row. A document that the search has seen is never among the documents that confirm
its result, nor among the calibration texts. Equal rows share a split.
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
    """For each document, the SHA-256 (hex) of the dataset's row that the task made it of.

    Columns that ``process_docs`` adds to the row are left out. If it does not keep all columns of
    the row, the document itself is hashed.
    """
    columns = _columns(task)
    return [
        document_hash({column: document[column] for column in columns})
        if columns and columns <= document.keys()
        else document_hash(document)
        for document in documents
    ]


def _columns(task: Task) -> frozenset[str]:
    """Columns of the dataset that a task scores; empty if it has no dataset or names no columns."""
    split = task.config.test_split if task.has_test_docs() else task.config.validation_split
    try:
        return frozenset(task.dataset[split].column_names or ())
    except (AttributeError, KeyError, TypeError):  # a task that is a Python class
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

    Documents of a split are sorted by a hash of (seed, document). So the documents of a limit are a
    prefix of those of every larger limit, and their order does not depend on other documents.

    Args:
        hashes: ``document_hash`` of every document of the benchmark.
        documents: the split, limit and seed that are asked for.
        rows: ``row_hashes`` of every document, which decide on its split; None = the same as
            ``hashes``.
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
    """The splits that a document of one of the three basic splits belongs to."""
    return (split, "full") if split == "calibration" else (split, "full", "uncalibrated")


def digest_of(hashes: Sequence[str]) -> str:
    """SHA-256 (hex) of the hashes of documents, in order."""
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()
