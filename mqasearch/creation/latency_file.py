"""Puts the times that ``mqasearch latency`` measured into a study that names their file."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from mqasearch.errors import UserError
from mqasearch.spec import LatencyFile
from mqasearch.statistics import median_interval

MOST_BYTES = 50_000_000


class _Model(BaseModel):
    windows: list[int | None] = []


class _Spread(BaseModel):
    median: float = Field(gt=0)
    samples: list[float] = Field(min_length=1)


class _Row(BaseModel):
    variant: str
    context: int
    batch_size: int
    decode: _Spread
    decode_speedup: _Spread


class _Variant(BaseModel):
    name: str
    kv_heads: list[int] = Field(min_length=1)


class _Engine(BaseModel):
    name: str = "transformers"
    version: str = ""


class _Machine(BaseModel):
    device: str
    name: str
    dtype: str


class _Measured(BaseModel):
    """What is read of a document of ``latency.schema.json``."""

    model: _Model
    n_tokens: int
    engine: _Engine = _Engine()
    machine: _Machine
    variants: list[_Variant] = Field(min_length=1)
    rows: list[_Row] = Field(min_length=1)


def with_times(data: Mapping[str, Any]) -> tuple[Mapping[str, Any], list[str]]:
    """The content of a study file with times in place of the names of files, and what is wrong.

    A budget whose file is wrong is left out.
    """
    if "budget" not in data:
        return data, []
    budgets = data["budget"]
    rows = budgets if isinstance(budgets, list) else [budgets]
    read, faults = [], []
    for number, row in enumerate(rows):
        path = f"budget.{number}.latency" if isinstance(budgets, list) else "budget.latency"
        try:
            read.append(_with_times(row))
        except UserError as error:
            faults.append(f"{path}: {error}")
    if faults:
        return {**data, "budget": read or "auto"}, faults
    return ({**data, "budget": read if isinstance(budgets, list) else read[0]}, [])


def _with_times(row: object) -> object:
    given = row.get("latency") if isinstance(row, Mapping) else None
    if isinstance(given, str):
        given = {"file": given}
    if not isinstance(row, Mapping) or not isinstance(given, Mapping) or "file" not in given:
        return row
    try:
        chosen = LatencyFile.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"{'.'.join(map(str, first['loc']))}: {first['msg']}; give a file, or "
            "{file: FILE.json, context: 2048, batch_size: 4}"
        ) from None
    return {**row, "latency": read_times(chosen)}


def read_times(chosen: LatencyFile) -> dict[str, Any]:
    """The times of one setting of a file, as a study file holds them.

    A time is the original's over the median of the speed-ups of the rounds, because the variants of
    one round ran under the same conditions.

    Raises:
        UserError: no such file or setting, too few repetitions, or a gain that may be noise.
    """
    measured = _read(Path(chosen.file))
    rows = _of_setting(measured, chosen)
    heads = {
        variant.name: variant.kv_heads[0]
        for variant in measured.variants
        if len(set(variant.kv_heads)) == 1
    }
    setting = f"context {rows[0].context}, batch size {rows[0].batch_size}"
    _check_alike(measured, rows[0], chosen.file)
    first = measured.variants[0]
    if first.name not in heads or heads[first.name] != max(heads.values()):
        raise UserError(f"{chosen.file}: its first variant is not the original")
    original = next(row for row in rows if row.variant == first.name)
    times = {heads[first.name]: original.decode.median}
    for row in rows:
        if row.variant == first.name or row.variant not in heads:
            continue
        _check_gain(row, heads[row.variant], setting, chosen.file)
        times[heads[row.variant]] = original.decode.median / median(row.decode_speedup.samples)
    machine, engine = measured.machine, measured.engine
    return {
        "context": rows[0].context,
        "batch_size": rows[0].batch_size,
        "ms": {number: float(f"{1e3 * each:.6g}") for number, each in sorted(times.items())},
        "measured_with": f"{engine.name} {engine.version} on {machine.device} ({machine.name}), "
        f"{machine.dtype}",
    }


def _read(path: Path) -> _Measured:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UserError(f"{path}: larger than {MOST_BYTES // 10**6} MB")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror or error}; write it with `mqasearch latency MODEL --kv-heads "
            f"1 -f json > {path}`"
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text") from None
    try:
        return _Measured.model_validate(json.loads(text))
    except (json.JSONDecodeError, RecursionError):
        raise UserError(f"{path}: not JSON; write it with `latency … -f json`") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"{path}: not what `mqasearch latency -f json` writes: "
            f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        ) from None


def _of_setting(measured: _Measured, chosen: LatencyFile) -> Sequence[_Row]:
    """The rows of the chosen setting, or of the only one."""
    settings = sorted({(row.context, row.batch_size) for row in measured.rows})
    fitting = [
        (context, batch_size)
        for context, batch_size in settings
        if chosen.context in (None, context) and chosen.batch_size in (None, batch_size)
    ]
    if len(fitting) == 1:
        return [row for row in measured.rows if (row.context, row.batch_size) == fitting[0]]
    had = "; ".join(f"context {context}, batch size {size}" for context, size in settings)
    context, size = (fitting or settings)[-1]
    raise UserError(
        f"{chosen.file}: {'several settings fit' if fitting else 'no such setting'}: it has {had}; "
        f"choose one: {{file: {chosen.file}, context: {context}, batch_size: {size}}}"
    )


def _check_alike(measured: _Measured, row: _Row, file: str) -> None:
    """Refuse a model whose layers do not all attend to as many tokens at this context."""
    most = row.context + measured.n_tokens
    seen = {most if window is None else min(window, most) for window in measured.model.windows}
    if len(seen) > 1:
        raise UserError(
            f"{file}: at context {row.context} some layers attend to {min(seen)} tokens and others "
            f"to more, so they do not save the same; measure a context below {min(seen)}, or give "
            "kv_bytes_fraction"
        )


def _check_gain(row: _Row, number: int, setting: str, file: str) -> None:
    samples = row.decode_speedup.samples
    interval = median_interval(samples)
    if interval is None:
        raise UserError(
            f"{file}: {len(samples)} repetitions are too few to tell a gain from noise; measure "
            "with --repetitions 5 or more"
        )
    if interval[0] <= 1:
        raise UserError(
            f"{file}: with {number} KV head(s) decoding is not faster beyond noise at {setting} "
            f"(speedup {median(samples):.2f} [{interval[0]:.2f}, {interval[1]:.2f}]); measure a "
            "longer context, a larger batch, or more --repetitions"
        )
