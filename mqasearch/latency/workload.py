"""What a latency measurement runs: variants of a model, in settings, in a fair order."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from mqasearch.errors import UserError
from mqasearch.mask import KVHeads, LayerMask, ModelShape

SHARES = (0, 25, 50, 75, 100)
"""Percentages of the layers that become multi-query if no mask is given."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A prompt's length and the number of sequences at a time."""

    context: int
    batch_size: int


@dataclass(frozen=True, slots=True)
class Turn:
    """One run of one variant.

    Attributes:
        setting: the setting that is run.
        variant: the variant's name.
        timed: False = the run warms up, and its memory is measured.
        opens_round: whether it is the first turn of a round.
    """

    setting: Setting
    variant: str
    timed: bool = True
    opens_round: bool = False


@dataclass(frozen=True, slots=True)
class Workload:
    """What is run.

    Attributes:
        contexts: tokens of the prompt; each of them with each of ``batch_sizes`` is a setting.
        batch_sizes: sequences at a time.
        n_tokens: number of tokens decoded after the prompt.
        repetitions: number of timed runs of each variant in each setting.
    """

    contexts: tuple[int, ...] = (512, 2048)
    batch_sizes: tuple[int, ...] = (1, 4)
    n_tokens: int = 32
    repetitions: int = 5

    def __post_init__(self) -> None:
        given = {
            "--context": self.contexts,
            "--batch-size": self.batch_sizes,
            "--n-tokens": (self.n_tokens,),
            "--repetitions": (self.repetitions,),
        }
        for option, numbers in given.items():
            if not numbers or min(numbers) < 1:
                raise UserError(f"{option}: must be 1 or more, not {min(numbers, default='none')}")

    @property
    def settings(self) -> tuple[Setting, ...]:
        """Every context length with every batch size."""
        pairs = product(dict.fromkeys(self.contexts), dict.fromkeys(self.batch_sizes))
        return tuple(Setting(context, batch_size) for context, batch_size in pairs)

    @property
    def largest(self) -> Setting:
        """The longest context with the largest batch, which needs the most memory."""
        return Setting(max(self.contexts), max(self.batch_sizes))

    def turns(self, variants: Sequence[str], *, together: bool) -> list[Turn]:
        """All runs in order. Variants take turns, and every round starts with another variant.

        Args:
            variants: the variants' names.
            together: whether all variants are in memory at once. If so, they take turns within
                each setting, and the runs of a round are neighbours in time. If not, a variant runs
                all settings in its turn, and warms up in every turn, since it was loaded anew.
        """
        rounds = [
            [*variants[start:], *variants[:start]]
            for start in (round_ % len(variants) for round_ in range(self.repetitions))
        ]
        if not together:
            return [
                Turn(setting, name, timed, timed and name == names[0])
                for names in rounds
                for name in names
                for setting in self.settings
                for timed in (False, True)
            ]
        turns = []
        for setting in self.settings:
            turns += [Turn(setting, name, timed=False) for name in variants]
            turns += [
                Turn(setting, name, opens_round=name == names[0])
                for names in rounds
                for name in names
            ]
        return turns


MOST_OF_FRONT = 6
"""The most masks of a front that are measured, the original included."""


def numbers_of_heads(
    shape: ModelShape, numbers: Sequence[int], *, own_code: bool
) -> dict[str, KVHeads]:
    """The original, and all layers with each of ``numbers`` KV heads.

    Args:
        shape: the model's shape.
        numbers: smaller numbers of KV heads.
        own_code: whether converted models are run by other code than the original. Then the second
            variant is the original in that code, because what fewer KV heads save is the difference
            to that.

    Raises:
        UserError: a number that does not divide the model's, or is not smaller.
    """
    have = shape.n_kv_heads
    if wrong := [number for number in numbers if number >= have or have % number]:
        possible = ", ".join(str(n) for n in range(1, have) if have % n == 0) or "none"
        raise UserError(f"--kv-heads {wrong[0]}: the model has {have}; possible: {possible}")
    descending = sorted(set(numbers), reverse=True)
    others = {f"{n} KV heads" if n > 1 else "1 KV head": (n,) * shape.n_layers for n in descending}
    unconverted = {f"{have}, converted code": shape.original} if own_code else {}
    return {f"original ({have})": shape.original, **unconverted, **others}


def along_front(shape: ModelShape, front: Sequence[KVHeads]) -> dict[str, KVHeads]:
    """The original, and some masks of a front, named by the share of the KV cache that is left.

    Args:
        shape: the model's shape.
        front: KV heads of masks, those with the largest cache first.
    """
    original = shape.kv_bytes_per_token(shape.original)
    masks = [heads for heads in front if heads != shape.original]
    most = MOST_OF_FRONT - 1
    if len(masks) > most:
        masks = [masks[round(place * (len(masks) - 1) / (most - 1))] for place in range(most)]
    shares = {shape.kv_bytes_per_token(heads) / original: heads for heads in masks}
    return {"original": shape.original} | {
        f"{100 * share:.3g} % of KV": heads for share, heads in shares.items()
    }


def shares_of_layers(shape: ModelShape) -> dict[str, KVHeads]:
    """0, 25, 50, 75 and 100 % of the layers with one KV head, evenly spread.

    Which layers they are does not matter for speed, unless only some have a sliding window.
    """
    n_layers = shape.n_layers
    variants = {}
    for share in SHARES:
        chosen = round(n_layers * share / 100)
        layers = ((2 * place + 1) * n_layers // (2 * chosen) for place in range(chosen))
        variants[f"{chosen} of {n_layers} MQA"] = LayerMask.of(layers, n_layers).kv_heads(shape)
    return variants
