"""A study as the text of a study file, to be read and changed by people."""

from collections.abc import Mapping
from typing import Any

import yaml

from mqasearch.spec.study_spec import StudySpec

_WORDS: Mapping[str, str] = {
    "merge": "how the KV heads of a layer become fewer: mqasearch merges",
    "kv_heads": "KV heads of a converted layer; several: each layer gets one of them",
    "budget": "layers to convert, or {kv_bytes_fraction: 0.6} of the KV cache, or {decode_ms: 12, "
    "latency: FILE.json}; a list; auto",
    "tolerance": "what may be lost on held-out documents, in hundredths of the metric's unit",
    "tasks": "benchmarks; the metric is what the search optimises",
    "documents": "of each task, for the search and for the held-out confirmation (null: all)",
    "selectors": "each chooses layers in its own way: mqasearch selectors",
    "n_trials": "of each selector that has no plan of its own",
    "seed": "of whatever is drawn at random",
}


def study_text(spec: StudySpec, heading: str) -> str:
    """The text of a study file that gives every value, also defaults, and is read as ``spec``.

    Args:
        spec: the study.
        heading: what the file is, in one line.
    """
    full = spec.model_dump(mode="json")
    shown = _lean(full, spec.model_dump(mode="json", exclude_defaults=True))
    text = yaml.safe_dump(
        {key: _short(value) for key, value in shown.items()},
        default_flow_style=None,
        sort_keys=False,
        allow_unicode=True,
        width=100,
    )
    rows = [f"# {heading}"]
    for row in text.splitlines():
        key = row.partition(":")[0]
        rows += [f"# {_WORDS[key]}"] if key in _WORDS else []
        rows.append(row)
    return "\n".join(rows) + "\n"


def _lean(full: Any, chosen: Any) -> Any:
    """The data without keys that are at an empty default, because these say nothing.

    Args:
        full: plain data.
        chosen: the same data without the keys that are at their default.
    """
    if isinstance(full, list) and isinstance(chosen, list):
        return [_lean(one, its) for one, its in zip(full, chosen, strict=True)]
    if not isinstance(full, Mapping):
        return full
    chosen = chosen if isinstance(chosen, Mapping) else {}
    return {
        key: _lean(value, chosen.get(key))
        for key, value in full.items()
        if key in chosen or value not in (None, [], {})
    }


def _short(value: Any) -> Any:
    """The value as people write it: a name or a number of layers without its key."""
    if isinstance(value, list):
        return [_short(one) for one in value]
    if isinstance(value, Mapping) and value.keys() in ({"name"}, {"n_layers"}):
        return next(iter(value.values()))
    return value
