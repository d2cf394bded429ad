"""The study of somebody who has a model and no study file."""

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
"""Shorter than a study file allows: a comparison's name has its budget at the end."""


def default_study(model: str, given: Mapping[str, Any]) -> StudySpec:
    """The study of a model: what is given, and the defaults of a study file for the rest.

    Args:
        model: a name, a folder or a GGUF file.
        given: keys of a study file that somebody chose.

    Raises:
        SpecError: what is given makes no study; every fault at once.
        ModelError: no such model.
    """
    where = f"run {model}"
    entry = {**given.get("model", {}), "name": _lasting(model)}
    data = {"name": study_name(model), "budget": "auto", "tasks": [DEFAULT_TASK]}
    return checked_study({**data, **given, "model": entry}, where)


def joined(earlier: StudySpec, model: str, given: Mapping[str, Any], where: str) -> StudySpec:
    """An earlier study of the same model with what is given now.

    What is not given stays as it was, so that the same command means the same study whatever the
    defaults become. More documents may be given, see
    :mod:`mqasearch.study.generations`, and another tolerance.

    Raises:
        SpecError: what is given makes no study; every fault at once.
        UserError: the earlier study is another one, with what differs.
    """
    data = earlier.model_dump(mode="json")
    chosen = dict(given)
    if "tasks" in chosen:  # with whatever the file says of them
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
    """The last part of a model's name, as a study may be called."""
    last = os.path.basename(os.path.abspath(model) if is_here(model) else model)
    last = last.removesuffix(".gguf")
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip("-._")
    return slug[:_LONGEST_NAME] or "model"


def _lasting(model: str) -> str:
    """A name that means the same model in another working folder."""
    path = Path(os.path.expanduser(model))
    return os.path.abspath(path) if path.exists() else model
