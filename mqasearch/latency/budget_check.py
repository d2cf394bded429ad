"""Whether masks that were chosen under a decoding time reach it, by a measurement."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from pydantic import ValidationError

from mqasearch.budget import DecodeTimes
from mqasearch.errors import UserError
from mqasearch.latency.report import Report
from mqasearch.mask import KVHeads
from mqasearch.spec import BudgetEntry
from mqasearch.statistics import median_interval

DRIFT = 0.05
"""A change of the original's time that is told."""


@dataclass(frozen=True, slots=True)
class TimeBudget:
    """The decoding time that a mask was to reach.

    Attributes:
        decode_ms: milliseconds of a decoding step.
        times: what the search was given, at one context and batch size.
        is_share: whether it was given as a share of the original's time.
    """

    decode_ms: float
    times: DecodeTimes
    is_share: bool


@dataclass(frozen=True, slots=True)
class Reached:
    """What a mask was predicted to need, and what it needs; milliseconds of a decoding step.

    Attributes:
        variant: the mask's name in the report.
        predicted_ms: by the times that the search was given.
        measured_ms: median of the repetitions.
        interval: of the median; None if there are too few repetitions.
        met: whether the interval is at or below the budget, or above it; None = neither.
    """

    variant: str
    predicted_ms: float
    measured_ms: float
    interval: tuple[float, float] | None
    met: bool | None

    @property
    def words(self) -> str:
        """The mask's result in one line."""
        interval = "" if self.interval is None else " [{:.4g}, {:.4g}]".format(*self.interval)
        ending = {True: "met", False: "missed", None: "not decided"}[self.met]
        return (
            f"{self.variant}: predicted {self.predicted_ms:.4g}, measured {self.measured_ms:.4g}"
            f"{interval} ms: {ending}"
        )


def time_budget(document: Mapping[str, Any]) -> TimeBudget | None:
    """The decoding time in a mask JSON; None if its budget is of another kind.

    Raises:
        UserError: the budget is a decoding time without valid times.
    """
    given = document.get("budget", {})
    if all(given.get(key) is None for key in ("decode_ms", "decode_fraction")):
        return None
    try:
        entry = BudgetEntry.model_validate(given)
    except ValidationError as error:
        raise UserError(f"the mask's budget is not valid: {error.errors()[0]['msg']}") from None
    budget = entry.budget
    assert budget.decode_ms is not None
    assert budget.times is not None
    return TimeBudget(budget.decode_ms, budget.times, entry.decode_fraction is not None)


def finalists(masks: Sequence[Mapping[str, Any]], budget: TimeBudget) -> dict[str, KVHeads]:
    """The KV heads of the masks at the best mask's budget, each once, named by their selectors.

    Masks that were enqueued by name have no such budget, so they are left out.

    Args:
        masks: the masks of a file, best first.
        budget: the best mask's.

    Raises:
        UserError: a mask has KV heads for which the budget has no time.
    """
    names: dict[KVHeads, list[str]] = {}
    for number, mask in enumerate(masks):
        if mask.get("budget") != masks[0].get("budget"):
            continue
        if unknown := sorted(set(mask["kv_heads"]) - set(budget.times.ms)):
            raise UserError(f"the mask's budget has no time with {unknown[0]} KV heads in a layer")
        chosen_by = mask.get("study", {}).get("selector", f"mask {number + 1}")
        names.setdefault(tuple(mask["kv_heads"]), []).append(chosen_by)
    return {", ".join(chosen_by): kv_heads for kv_heads, chosen_by in names.items()}


@dataclass(frozen=True, slots=True)
class BudgetCheck:
    """A measurement of masks that were chosen under a decoding time.

    Attributes:
        budget: the decoding time.
        masks: what each mask needs; empty if the budget's setting was not measured.
        warning: why the measurement may say little; None if nothing speaks against it.
    """

    budget: TimeBudget
    masks: tuple[Reached, ...]
    warning: str | None

    @property
    def lines(self) -> list[str]:
        """The result for people."""
        times = self.budget.times
        head = f"budget: {self.budget.decode_ms:.6g} ms per token at {times.setting}"
        rows = [head, *(f"  {row.words}" for row in self.masks)]
        return rows if self.warning is None else [*rows, f"beware: {self.warning}"]

    @property
    def document(self) -> dict[str, Any] | None:
        """The result as JSON of ``latency.schema.json``; None if no mask was measured."""
        if not self.masks:
            return None
        times = self.budget.times
        return {
            "decode_ms": self.budget.decode_ms,
            "context": times.context,
            "batch_size": times.batch_size,
            "masks": [
                asdict(row) | {"interval": None if row.interval is None else list(row.interval)}
                for row in self.masks
            ],
        }


def check_budget(report: Report, budget: TimeBudget) -> BudgetCheck:
    """What the report's variants need at the budget's setting; the first one is the original."""
    times = budget.times
    setting = (times.context, times.batch_size)
    rows = [row for row in report.rows if (row.context, row.batch_size) == setting]
    if not rows:
        return BudgetCheck(budget, (), f"the measurement has no {times.setting}")
    heads = {variant.name: variant.kv_heads for variant in report.variants}
    masks = (
        _reached(
            row.variant,
            times.predicted_ms(heads[row.variant]),
            [times.baseline_ms / each for each in row.decode_speedup.samples]
            if budget.is_share
            else [1e3 * each for each in row.decode.samples],
            budget.decode_ms,
        )
        for row in rows[1:]
    )
    return BudgetCheck(budget, tuple(masks), _drift(1e3 * rows[0].decode.median, budget))


def _reached(
    variant: str, predicted_ms: float, samples: Sequence[float], decode_ms: float
) -> Reached:
    interval = median_interval(samples)
    met = None
    if interval is not None and not interval[0] <= decode_ms < interval[1]:
        met = interval[1] <= decode_ms
    return Reached(variant, predicted_ms, median(samples), interval, met)


def _drift(original_ms: float, budget: TimeBudget) -> str | None:
    """A warning if the original does not take the time that the search was given."""
    before = budget.times.baseline_ms
    if abs(original_ms / before - 1) <= DRIFT:
        return None
    return (
        f"the original takes {original_ms:.6g} ms, and took {before:.6g} when the search was given "
        "its times: another machine, engine or dtype, or other work beside it"
    )
