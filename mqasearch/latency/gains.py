"""At which contexts and batch sizes MQA pays, in a sentence based on measured intervals."""

from collections.abc import Mapping, Sequence
from enum import Enum
from itertools import takewhile
from statistics import median

from mqasearch.statistics import median_interval

LEAST_GAIN = 0.05
"""The least gain that is worth changing a model."""


class Gain(Enum):
    """What the interval of a speed-up shows; the value is the wording in the sentence."""

    PAYS = f"gains at least {100 * LEAST_GAIN:.0f} %"
    LITTLE = f"gains something, maybe less than {100 * LEAST_GAIN:.0f} %"
    NOISE = "gains nothing beyond noise"
    LOSS = "loses"


def gain_of(low: float, high: float) -> Gain:
    """The gain if the speed-up is between ``low`` and ``high``; 1 = as fast as the original."""
    if low >= 1 + LEAST_GAIN:
        return Gain.PAYS
    if low > 1:
        return Gain.LITTLE
    return Gain.LOSS if high < 1 else Gain.NOISE


def what_pays(speedups: Mapping[tuple[int, int], Sequence[float]], variant: str) -> str:
    """Which contexts and batch sizes make decoding faster with a variant's KV heads.

    >>> what_pays({(1, 512): [1.2, 1.3, 1.2, 1.1, 1.2]}, "all layers MQA")
    'On this machine, with all layers MQA, decoding gains at least 5 % from 512 tokens of context on
    at batch size 1 (measured up to 512 tokens)'

    Args:
        speedups: (batch size, context) → the original's time over the variant's, round by round.
        variant: the variant's name.
    """
    known: dict[tuple[int, int], Gain] = {}
    for place, samples in speedups.items():
        interval = median_interval(samples)
        if interval is None:
            return (
                f"Too few repetitions ({len(samples)}) to tell a gain from noise: give "
                "--repetitions 5 or more"
            )
        known[place] = gain_of(*interval)
    clauses = []
    for gain in Gain:
        places: dict[str, list[int]] = {}  # contexts in words → batch sizes that they hold for
        for batch_size in sorted({batch_size for batch_size, _ in known}):
            gains = {
                context: found for (of, context), found in sorted(known.items()) if of == batch_size
            }
            words = _contexts(gains, gain)
            if words:
                places.setdefault(words, []).append(batch_size)
        where = [f"{words} at {_batch_sizes(of)}" for words, of in places.items()]
        if where:
            clauses.append(f"{gain.value} {', '.join(where)}")
    longest = max(context for _, context in known)
    return (
        f"On this machine, with {variant}, decoding {'; '.join(clauses)} "
        f"(measured up to {longest:,} tokens)"
    )


def beyond_bytes(
    speedups: Mapping[tuple[int, int], Sequence[float]],
    allowed: Mapping[tuple[int, int], float],
) -> str | None:
    """A warning if decoding gains more than fewer bytes explain; None = it does not.

    Such a gain is real in this engine with these options, but says little about others: the
    original spends time on something besides moving its cache once.

    Args:
        speedups: as in ``what_pays``.
        allowed: for the same settings, the speed-up that the bytes allow.
    """
    excess = {
        place: interval[0] / allowed[place]
        for place, samples in speedups.items()
        if (interval := median_interval(samples)) is not None
        and interval[0] >= (1 + LEAST_GAIN) * allowed[place]
    }
    if not excess:
        return None
    place = batch_size, context = max(excess, key=excess.__getitem__)
    return (
        f"Beware: at {context:,} tokens and batch size {batch_size} it is "
        f"{median(speedups[place]):.2f} times as fast, and fewer bytes explain "
        f"{allowed[place]:.2f}: the original spends time on something else, so other options of "
        "the engine, or other engines, may gain less"
    )


def _contexts(gains: dict[int, Gain], gain: Gain) -> str:
    """Contexts of one batch size that have ``gain``, in words; "" = none.

    Args:
        gains: context → gain, the shortest context first.
    """
    contexts = [context for context, found in gains.items() if found is gain]
    if gain is not Gain.PAYS:
        return _tokens(contexts)
    n_last = sum(1 for _ in takewhile(lambda found: found is gain, reversed(gains.values())))
    first_of_last = len(contexts) - n_last
    before = _tokens(contexts[:first_of_last])
    onwards = f"from {contexts[first_of_last]:,} tokens of context on" if n_last else ""
    return " and ".join(part for part in (before, onwards) if part)


def _tokens(contexts: Sequence[int]) -> str:
    return f"at {_listed([f'{context:,}' for context in contexts])} tokens" if contexts else ""


def _batch_sizes(batch_sizes: Sequence[int]) -> str:
    noun = "batch size" if len(batch_sizes) == 1 else "batch sizes"
    return f"{noun} {_listed([str(n) for n in batch_sizes])}"


def _listed(words: Sequence[str]) -> str:
    *but_last, last = words
    return f"{', '.join(but_last)} and {last}" if but_last else last
