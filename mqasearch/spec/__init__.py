"""The study file: its keys and values, its text, and its faults in words."""

from mqasearch.spec.budgets import BudgetEntry, LatencyFile
from mqasearch.spec.differing import changes
from mqasearch.spec.rendered import study_text
from mqasearch.spec.study_spec import (
    Entry,
    MergeEntry,
    ModelEntry,
    NamedMask,
    SelectorEntry,
    StudySpec,
    TaskEntry,
    named_entries,
    parse_spec,
)
from mqasearch.spec.yaml_text import read_yaml

__all__ = [
    "BudgetEntry",
    "Entry",
    "LatencyFile",
    "MergeEntry",
    "ModelEntry",
    "NamedMask",
    "SelectorEntry",
    "StudySpec",
    "TaskEntry",
    "changes",
    "named_entries",
    "parse_spec",
    "read_yaml",
    "study_text",
]
