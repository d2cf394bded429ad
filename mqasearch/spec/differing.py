"""What differs between two versions of a study file."""

from collections.abc import Mapping
from typing import Any

from mqasearch.spec.study_spec import StudySpec


def changes(before: StudySpec, after: StudySpec) -> list[str]:
    """Each value that differs, as ``key: before → after``.

    The tolerance is not compared: no score and no selector depends on it, so it may always change.
    """
    old, new = (spec.model_dump(mode="json", exclude={"tolerance"}) for spec in (before, after))
    return _leaves(old, new, "")


def _leaves(before: Mapping[str, Any], after: Mapping[str, Any], path: str) -> list[str]:
    rows = []
    for key in dict.fromkeys([*before, *after]):
        old, new = before.get(key), after.get(key)
        if old == new:
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            rows += _leaves(old, new, f"{path}{key}.")
        else:
            rows.append(f"{path}{key}: {_shown(old)} → {_shown(new)}")
    return rows


def _shown(value: object) -> str:
    """The value as a study file writes it."""
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    if isinstance(value, Mapping):
        given = {key: each for key, each in value.items() if each is not None}
        return f"{{{', '.join(f'{key}: {_shown(each)}' for key, each in given.items())}}}"
    return "null" if value is None else str(value)
