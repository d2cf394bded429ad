"""Which layers are converted, and what that makes of the KV cache."""

from collections.abc import Iterable, Iterator
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
    """One flag per layer, layer 0 first; True = the layer is converted.

    Example:
        >>> mask = LayerMask.of([1, 3], n_layers=4)
        >>> str(mask), mask.layers, mask.n_converted
        ('0101', (1, 3), 2)
    """

    flags: tuple[bool, ...]

    @classmethod
    def of(cls, layers: Iterable[int], n_layers: int) -> "LayerMask":
        """The mask that converts exactly ``layers`` (0-based).

        Raises:
            MaskError: a layer outside ``0 … n_layers - 1``.
        """
        chosen = set(layers)
        if outside := sorted(layer for layer in chosen if not 0 <= layer < n_layers):
            raise MaskError(f"layers {outside} are outside the model's layers 0 to {n_layers - 1}")
        return cls(tuple(layer in chosen for layer in range(n_layers)))

    @classmethod
    def parse(cls, text: str) -> "LayerMask":
        """The inverse of ``str``.

        Raises:
            MaskError: a character other than 0 and 1, or no character.
        """
        if not text or set(text) - {"0", "1"}:
            raise MaskError(f"mask {text!r} is not a row of 0 and 1, one per layer")
        return cls(tuple(character == "1" for character in text))

    @classmethod
    def empty(cls, n_layers: int) -> "LayerMask":
        """The original model: nothing converted."""
        return cls((False,) * n_layers)

    def __str__(self) -> str:
        return "".join("1" if flag else "0" for flag in self.flags)

    def __len__(self) -> int:
        return len(self.flags)

    def __iter__(self) -> Iterator[bool]:
        return iter(self.flags)

    @property
    def layers(self) -> tuple[int, ...]:
        """The converted layers, ascending, 0-based."""
        return tuple(layer for layer, flag in enumerate(self.flags) if flag)

    @property
    def n_converted(self) -> int:
        """Number of converted layers."""
        return sum(self.flags)

    def with_layers(self, *layers: int) -> "LayerMask":
        """This mask with further layers converted."""
        return LayerMask.of({*self.layers, *layers}, len(self.flags))

    def shared_prefix(self, other: "LayerMask") -> int:
        """Number of leading layers on which both masks agree."""
        for layer, (mine, theirs) in enumerate(zip(self.flags, other.flags, strict=True)):
            if mine != theirs:
                return layer
        return len(self.flags)

    def kv_heads(self, shape: ModelShape, target: int = 1) -> KVHeads:
        """KV heads per layer when every converted layer goes to ``target`` heads.

        Raises:
            MaskError: the mask has another number of layers than the model.
        """
        if len(self.flags) != shape.n_layers:
            raise MaskError(f"the mask has {len(self.flags)} layers, the model {shape.n_layers}")
        return tuple(target if flag else shape.n_kv_heads for flag in self.flags)
