"""Which layers are converted, how far, and what that makes of the KV cache."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil

from mqasearch.errors import MaskError

KVHeads = tuple[int, ...]
"""KV heads per layer, layer 0 first. All code below the search space works with these."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes that decide the size of the KV cache.

    Attributes:
        n_layers: attention layers.
        n_heads: query heads of a layer.
        n_kv_heads: KV heads of a layer (equal to ``n_heads`` for multi-head attention).
        head_dim: dimensions of one head.
        hidden_size: dimensions of the residual stream.
        bytes_per_element: bytes per element of the KV cache's dtype.
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    hidden_size: int
    bytes_per_element: int

    @property
    def original(self) -> KVHeads:
        """KV heads per layer of the unconverted model."""
        return (self.n_kv_heads,) * self.n_layers

    def kv_bytes_per_token(self, kv_heads: KVHeads) -> int:
        """Bytes of KV cache that one token takes over all layers: Σ 2·kv_heads·head_dim·bytes."""
        return self.kv_bytes_per_rank(kv_heads, 1)

    def kv_bytes_per_rank(self, kv_heads: KVHeads, n_ranks: int) -> int:
        """The same on each of ``n_ranks`` tensor-parallel ranks.

        A layer with fewer KV heads than ranks has each head on several ranks, so a rank never
        holds less than one head: Σ 2·⌈kv_heads / n_ranks⌉·head_dim·bytes.
        """
        held = sum(ceil(heads / n_ranks) for heads in kv_heads)
        return 2 * held * self.head_dim * self.bytes_per_element


@dataclass(frozen=True, slots=True)
class LayerMask:
    """One level per layer, layer 0 first: 0 = the layer is not converted, 1 = it gets the next
    smaller number of KV heads that the search allows, 2 = the one after that, and so on.

    If the search allows one number, a level is a flag.

    Example:
        >>> mask = LayerMask.of([1, 3], n_layers=4)
        >>> str(mask), mask.layers, mask.n_converted
        ('0101', (1, 3), 2)
        >>> str(mask.with_level(3, 2))
        '0102'
    """

    levels: tuple[int, ...]

    @classmethod
    def of(cls, layers: Iterable[int], n_layers: int, level: int = 1) -> "LayerMask":
        """The mask that converts exactly ``layers`` (0-based), all to the same level.

        Raises:
            MaskError: a layer outside ``0 … n_layers - 1``.
        """
        chosen = set(layers)
        if outside := sorted(layer for layer in chosen if not 0 <= layer < n_layers):
            raise MaskError(f"layers {outside} are outside the model's layers 0 to {n_layers - 1}")
        return cls(tuple(level if layer in chosen else 0 for layer in range(n_layers)))

    @classmethod
    def parse(cls, text: str) -> "LayerMask":
        """The inverse of ``str``.

        Raises:
            MaskError: a character other than a digit, or no character.
        """
        if not is_mask(text):
            raise MaskError(f"mask {text!r} is not a row of digits, one per layer")
        return cls(tuple(map(int, text)))

    @classmethod
    def empty(cls, n_layers: int) -> "LayerMask":
        """The original model: nothing converted."""
        return cls((0,) * n_layers)

    def __str__(self) -> str:
        return "".join(str(int(level)) for level in self.levels)

    def __len__(self) -> int:
        return len(self.levels)

    def __iter__(self) -> Iterator[int]:
        return iter(self.levels)

    @property
    def layers(self) -> tuple[int, ...]:
        """The converted layers, ascending, 0-based."""
        return tuple(layer for layer, level in enumerate(self.levels) if level)

    @property
    def n_converted(self) -> int:
        """Number of converted layers."""
        return sum(map(bool, self.levels))

    def with_level(self, layer: int, level: int) -> "LayerMask":
        """This mask with another level of one layer."""
        return LayerMask((*self.levels[:layer], level, *self.levels[layer + 1 :]))

    def with_layers(self, *layers: int) -> "LayerMask":
        """This mask with further layers converted to level 1."""
        chosen = LayerMask.of(layers, len(self.levels))
        return LayerMask(tuple(map(max, self.levels, chosen.levels)))

    def shared_prefix(self, other: "LayerMask") -> int:
        """Number of leading layers on which both masks agree."""
        for layer, (mine, theirs) in enumerate(zip(self.levels, other.levels, strict=True)):
            if mine != theirs:
                return layer
        return len(self.levels)

    def kv_heads(self, shape: ModelShape, numbers: Sequence[int] = (1,)) -> KVHeads:
        """KV heads per layer.

        Args:
            shape: the model's shape.
            numbers: the numbers of KV heads that a converted layer may have, in any order; level 1
                is the largest of them.

        Raises:
            MaskError: the mask has another number of layers than the model, or more levels than
                there are numbers.
        """
        if len(self.levels) != shape.n_layers:
            raise MaskError(f"the mask has {len(self.levels)} layers, the model {shape.n_layers}")
        choices = (shape.n_kv_heads, *sorted(numbers, reverse=True))
        if max(self.levels) >= len(choices):
            raise MaskError(
                f"the mask has level {max(self.levels)}, and the search only {len(choices) - 1}"
            )
        return tuple(choices[level] for level in self.levels)


def is_mask(text: str) -> bool:
    """Whether ``text`` is what ``str`` makes of a mask."""
    return text.isascii() and text.isdigit()
