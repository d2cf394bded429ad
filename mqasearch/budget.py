"""How much of the model is to be converted."""

import math
from dataclasses import dataclass

from mqasearch.mask import KVHeads, ModelShape


@dataclass(frozen=True, slots=True)
class Budget:
    """A budget; exactly one of the two attributes is given.

    Example:
        >>> shape = ModelShape(
        ...     n_layers=30, n_heads=9, n_kv_heads=3, head_dim=64, hidden_size=576,
        ...     bytes_per_element=2,
        ... )
        >>> Budget(kv_bytes_fraction=0.5).n_converted(shape)
        23

    Attributes:
        n_layers: layers to convert.
        kv_bytes_fraction: largest KV cache allowed, as a fraction of the original's.
    """

    n_layers: int | None = None
    kv_bytes_fraction: float | None = None

    def __post_init__(self) -> None:
        if (self.n_layers is None) == (self.kv_bytes_fraction is None):
            raise ValueError("give exactly one of n_layers and kv_bytes_fraction")

    def __str__(self) -> str:
        if self.n_layers is not None:
            return f"{self.n_layers} layers"
        return f"{self.kv_bytes_fraction:.0%} of the KV cache"

    def n_converted(self, shape: ModelShape, target: int = 1) -> int:
        """The fewest converted layers that meet the budget; every selector ends at this number."""
        if self.n_layers is not None:
            return self.n_layers
        assert self.kv_bytes_fraction is not None
        saved_per_layer = (1 - target / shape.n_kv_heads) / shape.n_layers
        return math.ceil((1 - self.kv_bytes_fraction) / saved_per_layer - 1e-9)

    def excess(self, kv_heads: KVHeads, shape: ModelShape) -> float:
        """How far a model is from the budget; feasible when ≤ 0 (Optuna's sign).

        The unit is layers still to convert for ``n_layers``, otherwise a fraction of the original
        cache.
        """
        if self.n_layers is not None:
            return self.n_layers - sum(heads < shape.n_kv_heads for heads in kv_heads)
        assert self.kv_bytes_fraction is not None
        original = shape.kv_bytes_per_token(shape.original)
        return shape.kv_bytes_per_token(kv_heads) / original - self.kv_bytes_fraction
