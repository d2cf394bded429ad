"""How much of the model is to be converted."""

from collections.abc import Sequence
from dataclasses import dataclass

from mqasearch.mask import KVHeads, ModelShape
from mqasearch.search_space import SearchSpace, heads_space


@dataclass(frozen=True, slots=True)
class Budget:
    """A budget; exactly one of the two attributes is given.

    Example:
        >>> shape = ModelShape(
        ...     n_layers=30, n_heads=9, n_kv_heads=3, head_dim=64, hidden_size=576,
        ...     bytes_per_element=2,
        ... )
        >>> Budget(kv_bytes_fraction=0.5).space(shape).least
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

    def space(self, shape: ModelShape, numbers: Sequence[int] = (1,)) -> SearchSpace:
        """The masks that a search with this budget may propose.

        Args:
            shape: the model's shape.
            numbers: the numbers of KV heads that a converted layer may have; one number if the
                budget is a number of layers.

        Raises:
            UserError: no mask meets the budget.
        """
        if self.n_layers is not None:
            (number,) = numbers
            return heads_space(shape, numbers, self.n_layers * (shape.n_kv_heads - number))
        assert self.kv_bytes_fraction is not None
        n_heads = shape.n_layers * shape.n_kv_heads
        return heads_space(shape, numbers, (1 - self.kv_bytes_fraction) * n_heads)

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
