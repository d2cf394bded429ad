"""Mask JSON: the best masks of a study as a file, and the published schemas of all files."""

from mqasearch.export.evidence_keys import evidence
from mqasearch.export.mask_json import (
    SCHEMA_VERSION,
    SCHEMAS,
    check_consistent,
    check_model,
    checked_mask,
    read_front,
    read_mask,
    read_masks,
    schema,
    validator,
    without_evidence,
    write_masks,
)
from mqasearch.export.masks import export

__all__ = [
    "SCHEMAS",
    "SCHEMA_VERSION",
    "check_consistent",
    "check_model",
    "checked_mask",
    "evidence",
    "export",
    "read_front",
    "read_mask",
    "read_masks",
    "schema",
    "validator",
    "without_evidence",
    "write_masks",
]
