"""The budget of a study file: how many layers are converted."""

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Annotated, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from mqasearch.budget import Budget
from mqasearch.mask import ModelShape

_QUOTIENT = r"^[0-9]{1,9}/[1-9][0-9]{0,8}$"
_Share = Annotated[float, Field(gt=0, lt=1)]


def _quotient(value: object) -> object:
    """The number that a text such as ``1/3`` means; anything else is left as it is."""
    if isinstance(value, str) and re.fullmatch(_QUOTIENT, value):
        return float(Fraction(value))
    return value


KVBytesFraction = Annotated[
    _Share, BeforeValidator(_quotient, _Share | Annotated[str, Field(pattern=_QUOTIENT)])
]
"""A number such as 0.5, or a quotient such as 1/3."""


class BudgetEntry(BaseModel):
    """The number of layers to convert, or the largest share of the KV cache that may be left."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    n_layers: int | None = Field(default=None, ge=1)
    kv_bytes_fraction: KVBytesFraction | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.n_layers is None) == (self.kv_bytes_fraction is None):
            raise ValueError("give exactly one of n_layers and kv_bytes_fraction")
        return self

    @property
    def budget(self) -> Budget:
        return Budget(self.n_layers, self.kv_bytes_fraction)

    @property
    def label(self) -> str:
        """A name of the budget that is short enough for a study name."""
        if self.n_layers is not None:
            return f"n{self.n_layers}"
        assert self.kv_bytes_fraction is not None
        return f"kv{100 * self.kv_bytes_fraction:.6g}"


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
