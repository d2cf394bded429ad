"""The study file: what it may say, its text, its faults in words."""

from mqasearch.spec.differing import changes
from mqasearch.spec.rendered import study_text
from mqasearch.spec.study_spec import KnownNames, SelectorEntry, StudySpec, load_spec, parse_spec

__all__ = [
    "KnownNames",
    "SelectorEntry",
    "StudySpec",
    "changes",
    "load_spec",
    "parse_spec",
    "study_text",
]
