"""Makes a study for somebody who has a model and no study file."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mqasearch.creation.names import checked_study
from mqasearch.errors import UserError
from mqasearch.models import is_here
from mqasearch.spec import StudySpec, changes

DEFAULT_TASK = "hellaswag"

_LONGEST_NAME = 80
"""Shorter than a study file allows, because a comparison's name ends with its budget."""


def default_study(model: str, given: Mapping[str, Any]) -> StudySpec:
    """The study of a model: the keys that are given, and defaults for all others.

    Args:
        model: a name, a folder or a GGUF file.
        given: keys of a study file that somebody chose.

    Raises:
        SpecError: the given keys make no valid study; all faults at once.
        ModelError: there is no such model.
    """
    where = f"run {model}"
    entry = {**given.get("model", {}), "name": _lasting(model)}
    data = {"name": study_name(model), "budget": "auto", "tasks": [DEFAULT_TASK]}
    return checked_study({**data, **given, "model": entry}, where)


def joined(earlier: StudySpec, model: str, given: Mapping[str, Any], where: str) -> StudySpec:
    """An earlier study of the same model with the keys that are given now.

    Keys that are not given stay as they were, so that the same command means the same study even if
    the defaults change. More documents (see :mod:`mqasearch.study.generations`) and another
    tolerance may be given.

    Raises:
        SpecError: the given keys make no valid study; all faults at once.
        UserError: the earlier study is another one; the message says what differs.
    """
    data = earlier.model_dump(mode="json")
    chosen = dict(given)
    if "tasks" in chosen:  # a task that the earlier study has keeps its entry there
        known = {entry["name"]: entry for entry in data["tasks"]}
        chosen["tasks"] = [known.get(name, name) for name in chosen["tasks"]]
    entry = {**given.get("model", {}), "name": _lasting(model)}
    documents = {**data["documents"], **chosen.pop("documents", {})}
    merged = {**data, **chosen, "model": {**data["model"], **entry}}
    others = checked_study(merged, f"run {model}")
    if differing := changes(earlier, others):
        raise UserError(
            f"{where} is another study ({'; '.join(differing)}); give another --output-dir and "
            f"--study-name, or go on with that one: mqasearch run {where}"
        )
    return checked_study(merged | {"documents": documents}, f"run {model}")


def study_name(model: str) -> str:
    """The last part of a model's name, with the characters that a study's name may have."""
    last = os.path.basename(os.path.abspath(model) if is_here(model) else model)
    last = last.removesuffix(".gguf")
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip("-._")
    return slug[:_LONGEST_NAME] or "model"


def _lasting(model: str) -> str:
    """The model's name; an absolute path if it is a path, so that it is valid in any folder."""
    path = Path(os.path.expanduser(model))
    return os.path.abspath(path) if path.exists() else model
