"""The JSON schema of the study file, for editors and for other programs.

``mqasearch/export/study.schema.json`` is what :func:`study_schema` returns.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, create_model

from mqasearch.merging import MERGES
from mqasearch.registry import Registry
from mqasearch.selectors import SELECTORS
from mqasearch.spec import SelectorEntry, StudySpec

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def study_schema() -> dict[str, Any]:
    """What a study file may say, with the selectors and merges that there are.

    It accepts every study file that :func:`mqasearch.creation.load_study` accepts, if each value
    has the type that is meant (``load_study`` also reads ``"30"`` as a number). ``load_study``
    refuses more: names of tasks and metrics that do not exist, and what does not fit together.
    """
    schema = StudySpec.model_json_schema(mode="validation")
    definitions = schema["$defs"]
    n_trials = SelectorEntry.model_fields["n_trials"]
    entries = {
        "SelectorEntry": _entries(SELECTORS, {"n_trials": (n_trials.annotation, n_trials)}),
        "MergeEntry": _entries(MERGES, {}),
    }
    for entry, known in entries.items():
        union = TypeAdapter(known).json_schema(mode="validation")
        definitions |= union.pop("$defs")
        definitions[entry] = union
    for name in ("selectors", "merge"):
        _allow_names(schema["properties"][name], definitions)
    return {"$schema": _DIALECT, **schema, "title": "A study file of mqasearch"}


def _entries(known: Registry[Any], also: Mapping[str, Any]) -> Any:
    """A discriminated union of a registry's classes, each with its parameters.

    Args:
        known: the classes.
        also: other keys that each entry may have: name → pydantic's (type, field).
    """
    models = []
    for name in known:
        keys: dict[str, Any] = {"name": (Literal[name], ...), **also, **known.parameters(name)}
        closed = ConfigDict(extra="forbid")
        models.append(create_model(name, __config__=closed, __doc__=known.summary(name), **keys))
    return Annotated[_any_of(models), Field(discriminator="name")]


def _any_of(kinds: list[Any]) -> Any:
    union = kinds[0]
    for kind in kinds[1:]:
        union = union | kind
    return union


def _allow_names(part: dict[str, Any], definitions: dict[str, Any]) -> None:
    """Let a bare string be one of the known names only."""
    choice = part.get("items", part)
    entry = next(one["$ref"] for one in choice["anyOf"] if "$ref" in one).rpartition("/")[2]
    names = list(definitions[entry]["discriminator"]["mapping"])
    choice["anyOf"] = [
        {"enum": names} if one.get("type") == "string" else one for one in choice["anyOf"]
    ]
