"""How much of the model is to be converted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import ceil, floor

from mqasearch.errors import UserError
from mqasearch.mask import KVHeads, ModelShape
from mqasearch.search_space import SearchSpace, heads_space

MOST_UNITS = 40
"""The most units in which a layer's savings are counted, if the budget is a time.

What a layer saves is rounded down to a unit. Smaller units make the masks at the budget longer to
count.
"""

TOLERATED = 1e-3
"""The part of a unit per layer by which a mask may miss its time, because times are rounded."""


@dataclass(frozen=True, slots=True)
class DecodeTimes:
    """Measured times of decoding with all layers at the same number of KV heads.

    Layers are taken to be alike, and what they save to add up: a layer with ``h`` KV heads saves
    ``(ms[n_kv_heads] - ms[h]) / n_layers``.

    Example:
        >>> times = DecodeTimes(context=2048, batch_size=4, ms={3: 20.0, 1: 14.0})
        >>> times.predicted_ms((3, 1, 1, 3))
        17.0

    Attributes:
        context: tokens of the prompt.
        batch_size: sequences at a time.
        ms: KV heads of every layer → milliseconds of one decoding step, which gives each sequence
            a token. The largest number is the model's own; its time is that of the code which runs
            converted models.
        original_ms: the original's time, if other code runs it than converted models; else None.
    """

    context: int
    batch_size: int
    ms: Mapping[int, float] = field(hash=False)
    original_ms: float | None = None

    @property
    def unconverted_ms(self) -> float:
        """The time with the model's own KV heads, in the code that runs converted models."""
        return self.ms[max(self.ms)]

    @property
    def baseline_ms(self) -> float:
        """The original's time as it is served today."""
        return self.unconverted_ms if self.original_ms is None else self.original_ms

    def predicted_ms(self, kv_heads: KVHeads) -> float:
        """The time of a converted model with these KV heads per layer."""
        saved = sum(self.unconverted_ms - self.ms[heads] for heads in kv_heads)
        return self.unconverted_ms - saved / len(kv_heads)

    @property
    def setting(self) -> str:
        """The setting in words."""
        return f"context {self.context}, batch size {self.batch_size}"


@dataclass(frozen=True, slots=True)
class Budget:
    """A budget; exactly one of the first three attributes is given.

    Example:
        >>> shape = ModelShape(
        ...     n_layers=30, n_heads=9, n_kv_heads=3, head_dim=64, hidden_size=576,
        ...     bytes_per_element=2,
        ... )
        >>> Budget(kv_bytes_fraction=0.5).space(shape).least
        23
        >>> times = DecodeTimes(context=2048, batch_size=4, ms={3: 20.0, 1: 14.0})
        >>> Budget(decode_ms=17.0, times=times).space(shape).least
        15

    Attributes:
        n_layers: layers to convert.
        kv_bytes_fraction: largest KV cache allowed, as a fraction of the original's.
        decode_ms: longest time allowed of a decoding step, in milliseconds.
        times: measured times; given with ``decode_ms``.
    """

    n_layers: int | None = None
    kv_bytes_fraction: float | None = None
    decode_ms: float | None = None
    times: DecodeTimes | None = None

    def __post_init__(self) -> None:
        given = (self.n_layers, self.kv_bytes_fraction, self.decode_ms)
        if sum(value is not None for value in given) != 1:
            raise ValueError("give exactly one of n_layers, kv_bytes_fraction and decode_ms")
        if (self.decode_ms is None) != (self.times is None):
            raise ValueError("give decode_ms and times together")

    def __str__(self) -> str:
        if self.n_layers is not None:
            return f"{self.n_layers} layers"
        if self.decode_ms is not None:
            assert self.times is not None
            setting = f"{self.times.context} tokens × {self.times.batch_size}"
            return f"{self.decode_ms:.6g} ms per token at {setting}"
        assert self.kv_bytes_fraction is not None
        return f"{100 * self.kv_bytes_fraction:.3g} % of the KV cache"

    def space(self, shape: ModelShape, numbers: Sequence[int] = (1,)) -> SearchSpace:
        """The masks that a search with this budget may propose.

        Args:
            shape: the model's shape.
            numbers: the numbers of KV heads that a converted layer may have; one number if the
                budget is a number of layers.

        Raises:
            UserError: no mask meets the budget; or the measured times lack a number of KV heads, or
                do not become shorter with fewer.
        """
        if self.n_layers is not None:
            (number,) = numbers
            return heads_space(shape, numbers, self.n_layers * (shape.n_kv_heads - number))
        if self.decode_ms is not None:
            assert self.times is not None
            return _times_space(shape, numbers, self.decode_ms, self.times)
        assert self.kv_bytes_fraction is not None
        n_heads = shape.n_layers * shape.n_kv_heads
        return heads_space(shape, numbers, (1 - self.kv_bytes_fraction) * n_heads)

    def excess(self, kv_heads: KVHeads, shape: ModelShape) -> float:
        """How far a model is from the budget; feasible when ≤ 0 (Optuna's sign).

        The unit is layers still to convert for ``n_layers``, milliseconds for ``decode_ms``,
        otherwise a fraction of the original cache.
        """
        if self.n_layers is not None:
            return self.n_layers - sum(heads < shape.n_kv_heads for heads in kv_heads)
        if self.decode_ms is not None:
            assert self.times is not None
            return self.times.predicted_ms(kv_heads) - self.decode_ms
        assert self.kv_bytes_fraction is not None
        original = shape.kv_bytes_per_token(shape.original)
        return shape.kv_bytes_per_token(kv_heads) / original - self.kv_bytes_fraction


def _times_space(
    shape: ModelShape, numbers: Sequence[int], decode_ms: float, times: DecodeTimes
) -> SearchSpace:
    """The space whose savings are milliseconds, in units of which a layer saves at most 40."""
    heads = sorted(numbers, reverse=True)
    _check_times(shape, heads, times)
    saved = [times.unconverted_ms - times.ms[number] for number in heads]
    savings = _in_units([each / saved[-1] for each in saved])
    unit = saved[-1] / shape.n_layers / savings[-1]  # milliseconds
    needed = (times.unconverted_ms - decode_ms) / unit
    least = ceil(needed - TOLERATED * shape.n_layers)
    choices = (False, True) if len(heads) == 1 else (shape.n_kv_heads, *heads)
    if not 1 <= least <= savings[-1] * shape.n_layers:
        raise UserError(
            f"{decode_ms:.6g} ms per token cannot be met by a choice of layers: at {times.setting} "
            f"it takes {times.unconverted_ms:.6g} if no layer has fewer KV heads, and "
            f"{times.ms[heads[-1]]:.6g} if every layer has {heads[-1]}; choose a time between the "
            "two"
        )
    return SearchSpace(shape.n_layers, least, savings, choices)


def _in_units(shares: Sequence[float]) -> tuple[int, ...]:
    """Ascending whole numbers, the last at most 40, whose ratios are nearly those of ``shares``.

    Each is rounded down. Of all units, those that lose least are taken.

    Args:
        shares: ascending parts of the last one, which is 1.
    """
    if len(shares) == 1:
        return (1,)
    found = (
        tuple(floor(units * share + TOLERATED) for share in shares)
        for units in range(MOST_UNITS, 0, -1)
    )
    usable = [row for row in found if all(a < b for a, b in pairwise((0, *row)))]
    return min(
        usable,
        key=lambda row: max(share - n / row[-1] for n, share in zip(row, shares, strict=True)),
    )


def _check_times(shape: ModelShape, heads: Sequence[int], times: DecodeTimes) -> None:
    """Check that the times are those of the model, and tell all numbers of KV heads apart.

    Args:
        shape: the model's shape.
        heads: the numbers of KV heads that a converted layer may have, descending.
        times: measured times.

    Raises:
        UserError: a time is missing, or hardly shorter than with more KV heads.
    """
    every = [shape.n_kv_heads, *heads]
    measured = ", ".join(map(str, sorted(times.ms)))
    if missing := [number for number in every if number not in times.ms]:
        listed = ",".join(map(str, sorted(heads)))
        raise UserError(
            f"no time was measured with {missing[0]} KV heads in every layer (there are times with "
            f"{measured}); measure it with `mqasearch latency MODEL --kv-heads {listed} -f json`"
        )
    if max(times.ms) != shape.n_kv_heads:
        raise UserError(
            f"the times go up to {max(times.ms)} KV heads, and the model has {shape.n_kv_heads}"
        )
    least_step = (times.unconverted_ms - times.ms[heads[-1]]) / MOST_UNITS
    for more, fewer in zip(every, heads, strict=False):
        if times.ms[more] - times.ms[fewer] < max(least_step, 1e-12):
            raise UserError(
                f"with {fewer} KV head(s) decoding is hardly faster than with {more} "
                f"({times.ms[fewer]:.6g} and {times.ms[more]:.6g} ms at {times.setting}): leave "
                f"{fewer} out of kv_heads, or measure a longer context or a larger batch"
            )
