"""What is wrong with a study file, in words."""

from collections.abc import Callable, Mapping

from pydantic import ValidationError
from pydantic_core import ErrorDetails

UnknownKey = Callable[[tuple[int | str, ...]], str]
"""Takes the path of an unknown key and returns what to say about it."""


def faults_of(error: ValidationError, unknown_key: UnknownKey) -> list[str]:
    """Every fault as one line: the key's path, what is wrong, what to write instead."""
    return [_fault(row, unknown_key) for row in _rows(error)]


def _rows(error: ValidationError) -> list[ErrorDetails]:
    """Pydantic's errors.

    If a key takes a number or a word, pydantic reports an error for each of the two. Only the error
    for the type that was given is kept.
    """
    rows = []
    for row in error.errors():
        *path, last = row["loc"] or ("",)
        kind = str(last).partition("[")[0]
        if kind in ("constrained-int", "literal"):
            if (kind == "literal") != isinstance(row["input"], str):
                continue
            row["loc"] = tuple(path)
        rows.append(row)
    return rows


def _fault(row: ErrorDetails, unknown_key: UnknownKey) -> str:
    """One pydantic error as one line: the key's path, what is wrong, what to write instead."""
    path = ".".join(str(part) for part in row["loc"])
    if row["type"] == "extra_forbidden":
        return f"{path}: {unknown_key(row['loc'])}"
    if row["type"] == "missing":
        return f"{path}: missing"
    message = row["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if row["type"] in ("model_type", "model_attributes_type"):
        message = f"expected {_EXPECTED.get(str(row['loc'][0]), 'a mapping of keys')}"
    shown = "" if row["type"] == "value_error" else f", not {row['input']!r:.80}"
    return f"{path}: {message}{shown}" if path else f"{message}{shown}"


_EXPECTED: Mapping[str, str] = {
    "budget": "a number of layers, {kv_bytes_fraction: 0.6}, {decode_ms: 12, latency: FILE.json}, "
    "a list of these, or auto",
    "model": "a name, or {name, revision, dtype, trust_remote_code}",
    "merge": "a name, or {name, …parameters}",
    "tasks": "a name, or {name, metric, num_fewshot, limit, weight}",
    "tolerance": "{metric, points}, or a list of these",
    "selectors": "a name, or {name, n_trials, …parameters}",
    "pruner": "paired_mean, or {name: paired_mean, p_threshold, n_startup_steps, interval_steps}",
}
