"""The budget of a study file: how many layers are converted."""

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Annotated, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from mqasearch.budget import Budget, DecodeTimes
from mqasearch.mask import ModelShape

_QUOTIENT = r"^[0-9]{1,9}/[1-9][0-9]{0,8}$"
_Between = Annotated[float, Field(gt=0, lt=1)]


def _quotient(value: object) -> object:
    """The number that a text such as ``1/3`` means; anything else is left as it is."""
    if isinstance(value, str) and re.fullmatch(_QUOTIENT, value):
        return float(Fraction(value))
    return value


Share = Annotated[
    _Between, BeforeValidator(_quotient, _Between | Annotated[str, Field(pattern=_QUOTIENT)])
]
"""A number such as 0.5, or a quotient such as 1/3."""

_Count = Annotated[int, Field(ge=1)]
_Milliseconds = Annotated[float, Field(gt=0, lt=1e6)]
_NUMBER = r"^[1-9][0-9]{0,8}$"


def _numbers(value: object) -> object:
    """Numbers of KV heads as keys, which are texts in JSON; each may be given once."""
    if not isinstance(value, dict):
        return value
    keys = [*map(str, value)]
    if wrong := [key for key in keys if not re.fullmatch(_NUMBER, key)]:
        raise ValueError(f"{wrong[0]!r:.40} is not a number of KV heads")
    if len({*keys}) < len(keys):
        raise ValueError("a number of KV heads is given twice")
    return value


_Times = Annotated[
    dict[_Count, _Milliseconds],
    Field(min_length=2, json_schema_extra={"propertyNames": {"pattern": _NUMBER}}),
    BeforeValidator(_numbers),
]


class LatencyFile(BaseModel):
    """A file that ``mqasearch latency -f json`` wrote, and which of its settings is meant.

    The setting may be left out if the file has only one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    file: str
    context: _Count | None = None
    batch_size: _Count | None = None


class DecodeTimesEntry(BaseModel):
    """Times of decoding: number of KV heads of every layer → milliseconds of a decoding step.

    ``original_ms`` is the original's time, if other code runs it than converted models.
    ``n_layers`` is the number of the model's layers, and ``measured_with`` says what ran it, for
    people.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    context: _Count
    batch_size: _Count
    ms: _Times
    original_ms: _Milliseconds | None = None
    n_layers: _Count | None = None
    measured_with: str | None = None

    @property
    def times(self) -> DecodeTimes:
        return DecodeTimes(self.context, self.batch_size, self.ms, self.original_ms)


def _no_file(value: object) -> object:
    """Refuse a file's name, because the reader of a study file replaces it by the times."""
    if isinstance(value, str) or (isinstance(value, dict) and "file" in value):
        raise ValueError("the times must be here, not in a file; only a study file may name one")
    return value


LatencyGiven = str | LatencyFile | DecodeTimesEntry | None


class BudgetEntry(BaseModel):
    """What the search must reach.

    It is a number of layers to convert, the largest share of the KV cache that may be left, or the
    longest time of a decoding step, in milliseconds or as a share of the original's.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    n_layers: int | None = Field(default=None, ge=1)
    kv_bytes_fraction: Share | None = None
    decode_ms: _Milliseconds | None = None
    decode_fraction: Share | None = None
    latency: Annotated[DecodeTimesEntry | None, BeforeValidator(_no_file, LatencyGiven)] = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        times = (self.decode_ms, self.decode_fraction)
        given = [value for value in (self.n_layers, self.kv_bytes_fraction, *times) if value]
        if len(given) != 1:
            raise ValueError(
                "give exactly one of n_layers, kv_bytes_fraction, decode_ms and decode_fraction"
            )
        if any(times) and self.latency is None:
            raise ValueError(
                "a decoding time needs measured ones: give latency: FILE.json, which `mqasearch "
                "latency MODEL --kv-heads 1 -f json > FILE.json` writes"
            )
        if self.latency is not None and not any(times):
            raise ValueError("latency goes with decode_ms or decode_fraction")
        return self

    @property
    def budget(self) -> Budget:
        if self.latency is None:
            return Budget(self.n_layers, self.kv_bytes_fraction)
        times = self.latency.times
        decode_ms = self.decode_ms or (self.decode_fraction or 0) * times.baseline_ms
        return Budget(decode_ms=decode_ms, times=times)

    @property
    def label(self) -> str:
        """A name of the budget that is short enough for a study name."""
        if self.n_layers is not None:
            return f"n{self.n_layers}"
        if self.latency is not None:
            setting = f"{self.latency.context}x{self.latency.batch_size}"
            if self.decode_ms is not None:
                return f"ms{_plain(self.decode_ms)}-{setting}"
            return f"decode{_plain(100 * (self.decode_fraction or 0))}-{setting}"
        assert self.kv_bytes_fraction is not None
        return f"kv{100 * self.kv_bytes_fraction:.6g}"


def _plain(number: float) -> str:
    """The number without an exponent, since a study's name has no plus sign."""
    return f"{number:.9f}".rstrip("0").rstrip(".")


def _budget_door(value: object) -> object:
    return {"n_layers": value} if isinstance(value, int) and not isinstance(value, bool) else value


AUTO_SHARES = (1 / 6, 1 / 3, 1 / 2, 2 / 3)
"""The shares of the layers that ``budget: auto`` converts."""


def budgets_door(value: object) -> object:
    """The budgets as a list; empty for ``auto``, because its sizes follow from the model."""
    if value == "auto":
        return []
    if value == []:
        raise ValueError("name at least one budget, or auto")
    return value if isinstance(value, list) else [value]


BudgetGiven = BudgetEntry | Annotated[int, Field(ge=1)]
"""A number means layers."""

OneBudget = Annotated[BudgetEntry, BeforeValidator(_budget_door, BudgetGiven)]


AUTO_FRACTIONS = (3 / 4, 1 / 2, 3 / 8, 1 / 4)
"""The shares of the KV cache that ``budget: auto`` leaves if there are several ``kv_heads``."""


def auto_budgets(shape: ModelShape, numbers: Sequence[int]) -> list[BudgetEntry]:
    """The budgets that ``budget: auto`` means for a model.

    Args:
        shape: the model's shape.
        numbers: the numbers of KV heads that a converted layer may have.
    """
    if len(numbers) == 1:
        sizes = dict.fromkeys(max(1, round(share * shape.n_layers)) for share in AUTO_SHARES)
        return [BudgetEntry(n_layers=n) for n in sizes]
    smallest = min(numbers) / shape.n_kv_heads
    fractions = [fraction for fraction in AUTO_FRACTIONS if fraction > smallest] or [
        (1 + smallest) / 2  # halfway to the smallest cache
    ]
    return [BudgetEntry(kv_bytes_fraction=fraction) for fraction in fractions]
