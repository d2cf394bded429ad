"""Puts the times that ``mqasearch latency`` measured into a study that names their file."""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from mqasearch.errors import UserError
from mqasearch.spec import LatencyFile
from mqasearch.statistics import median_interval

MOST_BYTES = 50_000_000
_AGAIN = (
    "write it with `mqasearch latency MODEL --kv-heads 1 --context 2048 --batch-size 4 -f json`, "
    "for your numbers"
)


_Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=1)]


class _Model(BaseModel):
    id: str
    n_layers: _Count
    windows: list[_Count | None]


class _Spread(BaseModel):
    median: _Seconds
    samples: list[_Seconds] = Field(min_length=1)


class _Row(BaseModel):
    variant: str
    context: int
    batch_size: int
    decode: _Spread
    decode_speedup: _Spread


class _Variant(BaseModel):
    name: str
    kv_heads: list[_Count] = Field(min_length=1)


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

    A budget whose file is wrong is replaced by another one, so that the rest can be checked.
    """
    if "budget" not in data:
        return data, []
    budgets = data["budget"]
    rows = budgets if isinstance(budgets, list) else [budgets]
    given = data.get("kv_heads", data.get("target_kv_heads", 1))
    numbers = given if isinstance(given, list) else [given]
    read, faults = [], []
    for number, row in enumerate(rows):
        path = f"budget.{number}.latency" if isinstance(budgets, list) else "budget.latency"
        try:
            read.append(_with_times(row, numbers))
        except UserError as error:
            faults.append(f"{path}: {error}")
            read.append({"kv_bytes_fraction": 1 - 1e-6 * (number + 1)})
    return {**data, "budget": read if isinstance(budgets, list) else read[0]}, faults


def _with_times(row: object, numbers: Collection[int]) -> object:
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
    return {**row, "latency": read_times(chosen, numbers)}


def read_times(chosen: LatencyFile, numbers: Collection[int]) -> dict[str, Any]:
    """The times of one setting of a file, as a study file holds them.

    Times with other KV heads than the model's own and ``numbers`` are left out.

    A time is that of the model's own KV heads over the median of the speed-ups of the rounds,
    because the variants of one round ran under the same conditions.

    Raises:
        UserError: no such file or setting, too few repetitions, or a gain that may be noise.
    """
    measured = _read(Path(chosen.file))
    rows = _of_setting(measured, chosen)
    setting = f"context {rows[0].context}, batch size {rows[0].batch_size}"
    _check_alike(measured, rows[0], chosen.file)
    original, unconverted, reduced = _uniform(measured, rows, chosen.file)
    base = original.decode.median / median(unconverted.decode_speedup.samples)
    own = measured.variants[0].kv_heads[0]
    times = {own: base}
    for number, row in reduced.items():
        if number not in numbers:
            continue
        gains = [
            after / before
            for after, before in zip(
                row.decode_speedup.samples, unconverted.decode_speedup.samples, strict=True
            )
        ]
        _check_gain(gains, number, setting, chosen.file)
        times[number] = base / median(gains)
    if len(times) == 1:
        raise UserError(
            f"{chosen.file}: has no time with {_listed(numbers)} KV heads in every layer; {_AGAIN}"
        )
    machine, engine = measured.machine, measured.engine
    apart = {} if unconverted is original else {"original_ms": _ms(original.decode.median)}
    return {
        "context": rows[0].context,
        "batch_size": rows[0].batch_size,
        "ms": {number: _ms(each) for number, each in sorted(times.items())},
        **apart,
        "n_layers": measured.model.n_layers,
        "measured_with": f"{measured.model.id} in {engine.name} {engine.version} on "
        f"{machine.device} ({machine.name}), {machine.dtype}",
    }


def _listed(numbers: Collection[object]) -> str:
    return " or ".join(map(str, numbers))


def _ms(seconds: float) -> float:
    return float(f"{1e3 * seconds:.6g}")


def _uniform(
    measured: _Measured, rows: Sequence[_Row], file: str
) -> tuple[_Row, _Row, dict[int, _Row]]:
    """The original, the model with its own KV heads in the converted code, and fewer KV heads.

    An engine runs all variants by the same code; then the second row is the first.
    """
    of = {row.variant: row for row in rows}
    first, *others = measured.variants
    heads = {each.name: each.kv_heads[0] for each in others if len(set(each.kv_heads)) == 1}
    own = first.kv_heads[0]
    if len(set(first.kv_heads)) > 1 or any(number > own for number in heads.values()):
        raise UserError(f"{file}: its first variant is not the original")
    if missing := [name for name in (first.name, *heads) if name not in of]:
        raise UserError(f"{file}: has no row of {missing[0]!r} in each setting")
    unconverted = next((of[name] for name, number in heads.items() if number == own), None)
    if unconverted is None and measured.engine.name == _Engine().name:
        raise UserError(
            f"{file}: has no time of the converted code with the model's own {own} KV heads; "
            f"{_AGAIN}"
        )
    reduced = {number: of[name] for name, number in heads.items() if number < own}
    if len({len(row.decode_speedup.samples) for row in rows}) > 1:
        raise UserError(f"{file}: its variants were not run equally often")
    return of[first.name], unconverted or of[first.name], reduced


def _read(path: Path) -> _Measured:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UserError(f"{path}: larger than {MOST_BYTES // 10**6} MB")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; {_AGAIN}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text") from None
    except ValueError:
        raise UserError(f"{str(path)!r:.80} is not the name of a file") from None
    try:
        return _Measured.model_validate(json.loads(text))
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"{path}: not what `mqasearch latency -f json` writes: "
            f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        ) from None
    except (ValueError, RecursionError):
        raise UserError(f"{path}: not JSON; {_AGAIN}") from None


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
        f"choose one in a study file, {{file: {chosen.file}, context: {context}, batch_size: "
        f"{size}}}, or measure one alone, --context {context} --batch-size {size}"
    )


def _check_alike(measured: _Measured, row: _Row, file: str) -> None:
    """Refuse a model whose layers do not all attend to as many tokens at this context."""
    most = row.context + measured.n_tokens
    seen = {most if window is None else min(window, most) for window in measured.model.windows}
    if len(seen) > 1:
        raise UserError(
            f"{file}: at context {row.context} some layers attend to {min(seen)} tokens and others "
            f"to more, so they do not save the same; measure --context "
            f"{max(1, min(seen) - measured.n_tokens)} or less, or give kv_bytes_fraction"
        )


def _check_gain(gains: Sequence[float], number: int, setting: str, file: str) -> None:
    interval = median_interval(gains)
    if interval is None:
        raise UserError(
            f"{file}: {len(gains)} repetitions are too few to tell a gain from noise; measure "
            "with --repetitions 5 or more"
        )
    if interval[0] <= 1:
        raise UserError(
            f"{file}: with {number} KV head(s) decoding is not faster beyond noise at {setting} "
            f"(speedup {median(gains):.2f} [{interval[0]:.2f}, {interval[1]:.2f}]); measure a "
            "longer context, a larger batch, or more --repetitions"
        )
