"""Which masks a search may propose, and which of them are at its budget."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, gcd

from mqasearch.errors import UserError
from mqasearch.mask import LayerMask, ModelShape


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """The levels that a layer may have, what each saves, and how much a mask must save.

    **At the budget** is a mask that saves enough, and that would not save enough any more if any
    one of its layers went back by one level. With one level, these are the masks of ``least``
    layers.

    Example:
        >>> flags = SearchSpace(n_layers=4, least=2)
        >>> flags.is_at_budget(LayerMask.parse("0101"))
        True
        >>> several = SearchSpace(n_layers=4, least=9, savings=(4, 6, 7), choices=(8, 4, 2, 1))
        >>> [several.is_at_budget(LayerMask.parse(text)) for text in ("1100", "1200", "2200")]
        [False, True, False]

    Attributes:
        n_layers: layers of the model.
        least: what a mask at the budget must save, in the unit of ``savings``.
        savings: what a layer saves at level 1, 2, …; ascending.
        choices: the value of a layer's parameter at level 0, 1, …: ``(False, True)``, or numbers of
            KV heads.

    Raises:
        UserError: no mask saves so much, or nothing is to be saved.
    """

    n_layers: int
    least: int
    savings: tuple[int, ...] = (1,)
    choices: tuple[bool | int, ...] = (False, True)

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise UserError(
                f"a budget of {self.least} layers does not fit a model of {self.n_layers}; "
                f"choose 1 to {self.n_layers}"
                if self.n_levels == 1
                else f"a budget that saves {self.least} of at most {self.most} cannot be met"
            )

    @property
    def n_levels(self) -> int:
        """The number of levels of a converted layer."""
        return len(self.savings)

    @property
    def most(self) -> int:
        """What is saved if every layer is converted as far as possible."""
        return self.n_layers * self.savings[-1]

    @property
    def steps(self) -> tuple[int, ...]:
        """What a layer saves more at level 1, 2, … than at the level before."""
        return tuple(after - before for before, after in pairwise((0, *self.savings)))

    def holds(self, mask: LayerMask) -> bool:
        """Whether the mask has as many layers, and no other levels."""
        return len(mask) == self.n_layers and max(mask.levels) <= self.n_levels

    def saved(self, mask: LayerMask) -> int:
        """What the mask saves."""
        if self.savings == (1,):
            return sum(mask.levels)
        each = (0, *self.savings)
        return sum(each[level] for level in mask.levels)

    def size(self, mask: LayerMask) -> int:
        """``least`` for all masks at the budget, and what it saves for any other mask.

        So masks that may be compared have one size. No other mask has the size ``least``.
        """
        saved = self.saved(mask)
        if saved <= self.least or self.n_levels == 1:
            return saved
        steps = self.steps
        shortest = min(steps[level - 1] for level in mask.levels if level)
        return self.least if saved - shortest < self.least else saved

    def is_at_budget(self, mask: LayerMask) -> bool:
        """Whether the mask saves enough, and no more than it must."""
        return self.size(mask) == self.least

    @property
    def deepest(self) -> int:
        """The highest level that a mask at the budget may have: a higher one saves too much."""
        alone = (LayerMask.of([0], self.n_layers, n) for n in range(1, self.n_levels + 1))
        return sum(self.size(mask) <= self.least for mask in alone)

    def alone(self) -> Iterator[LayerMask]:
        """The masks that convert one layer and do not save too much: by level, then by layer."""
        for level in range(1, self.deepest + 1):
            for layer in range(self.n_layers):
                yield LayerMask.of([layer], self.n_layers, level)

    def with_least(self, least: int) -> "SearchSpace":
        """The same levels with another budget."""
        return SearchSpace(self.n_layers, least, self.savings, self.choices)


def heads_space(shape: ModelShape, numbers: Sequence[int], least_heads: float) -> SearchSpace:
    """The space of the masks whose layers keep their KV heads or get one of ``numbers``.

    Args:
        shape: the model's shape.
        numbers: smaller numbers of KV heads, in any order.
        least_heads: KV heads that a mask at the budget must save, summed over the layers.

    Raises:
        UserError: no mask saves so many.
    """
    heads = sorted(numbers, reverse=True)
    saved = [shape.n_kv_heads - number for number in heads]
    unit = gcd(*saved)
    least = ceil(least_heads / unit - 1e-9)
    choices = (False, True) if len(heads) == 1 else (shape.n_kv_heads, *heads)
    return SearchSpace(shape.n_layers, least, tuple(n // unit for n in saved), choices)


def in_words(mask: LayerMask, numbers: Sequence[int]) -> str:
    """The converted layers as people read them.

    Args:
        mask: a mask.
        numbers: the numbers of KV heads that a converted layer may have.

    Example:
        >>> in_words(LayerMask.parse("0110"), [1]), in_words(LayerMask.parse("0120"), [1, 4])
        ('1,2', '4 heads: 1; 1 head: 2')
    """
    if len(numbers) == 1:
        return ",".join(map(str, mask.layers))
    parts = []
    for level, number in enumerate(sorted(numbers, reverse=True), start=1):
        layers = [str(layer) for layer, each in enumerate(mask) if each == level]
        if layers:
            parts.append(f"{number} head{'s' if number > 1 else ''}: {','.join(layers)}")
    return "; ".join(parts)
