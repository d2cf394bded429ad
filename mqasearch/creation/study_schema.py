"""The JSON schema of the study file, for editors and for other programs.

``mqasearch/export/study.schema.json`` is what :func:`study_schema` returns.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, create_model

from mqasearch.conversion import MERGES
from mqasearch.selectors import SELECTORS, parameters_of
from mqasearch.spec import SelectorEntry, StudySpec

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def study_schema() -> dict[str, Any]:
    """What a study file may say, with the selectors and merges that there are.

    It accepts every study file that :func:`mqasearch.creation.load_study` accepts. The latter
    refuses more: names of tasks and metrics that do not exist, and what does not fit together.
    """
    schema = StudySpec.model_json_schema(mode="validation")
    definitions = schema["$defs"]
    for entry, known in (("SelectorEntry", _selectors()), ("MergeEntry", _merges())):
        union = TypeAdapter(known).json_schema(mode="validation")
        definitions |= union.pop("$defs")
        definitions[entry] = union
    for name in ("selectors", "merge"):
        _allow_names(schema["properties"][name], definitions)
    return {"$schema": _DIALECT, **schema, "title": "A study file of mqasearch"}


def _selectors() -> Any:
    """Every selector with its parameters, told apart by name."""
    n_trials = SelectorEntry.model_fields["n_trials"]
    return _union(
        {
            name: {"n_trials": (n_trials.annotation, n_trials), **parameters_of(name)}
            for name in SELECTORS
        },
        {name: selector.summary for name, selector in SELECTORS.items()},
    )


def _merges() -> Any:
    """Every merge with its parameters, told apart by name."""
    return _union(
        {
            name: {field.name: (type(field.default), field.default) for field in fields(merge)}
            for name, merge in MERGES.items()
        },
        {name: (merge.__doc__ or "").strip().splitlines()[0] for name, merge in MERGES.items()},
    )


def _union(known: Mapping[str, Mapping[str, Any]], summaries: Mapping[str, str]) -> Any:
    """A discriminated union: name → parameter → (type, default)."""
    models = [
        create_model(
            name,
            __config__=ConfigDict(extra="forbid"),
            __doc__=summaries[name],
            name=(Literal[name], ...),  # type: ignore[arg-type]
            **parameters,
        )
        for name, parameters in known.items()
    ]
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
