"""The seam between one layer's weights and the methods that merge its KV heads."""

from abc import ABC, abstractmethod
from dataclasses import fields
from typing import Any, ClassVar

from mqasearch.conversion.statistics import LayerStatistics
from mqasearch.families.weights import AttentionWeights


class Merge(ABC):
    """A method that gives a layer fewer KV heads, in closed form.

    Subclasses are frozen dataclasses; their fields are the parameters of the method. ``merge`` is
    called once per (layer, target) and its result kept, so it may take its time; it is a pure
    function of its arguments, so that every worker gets the same layer. It may be called on any
    layer in any order.

    Attributes:
        name: what a study file calls it.
        needs_statistics: it cannot work without calibration.
        reads_statistics: its result depends on the calibration where there is one.
    """

    name: ClassVar[str]
    needs_statistics: ClassVar[bool] = False
    reads_statistics: ClassVar[bool] = False

    @property
    def parameters(self) -> dict[str, Any]:
        """Its parameters by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]

    @property
    def digest(self) -> str:
        """Name and parameters, canonical: ``mean``, ``aligned(centre=True, refit=False)``."""
        if not self.parameters:
            return self.name
        listed = (f"{name}={value!r}" for name, value in sorted(self.parameters.items()))
        return f"{self.name}({', '.join(listed)})"

    @abstractmethod
    def merge(
        self, weights: AttentionWeights, target: int, statistics: LayerStatistics | None
    ) -> AttentionWeights:
        """The same layer with ``target`` KV heads.

        KV head ``g`` of the result stands for the g-th of ``target`` contiguous, equally large
        groups of KV heads; a method that wants other groups permutes heads first, which is exact.

        Args:
            weights: on the CPU, in the model's dtype; not to be changed in place.
            target: divides ``weights.n_kv_heads`` and is smaller.
            statistics: of this layer; never None when ``needs_statistics``.

        Returns:
            Weights in any floating dtype; the caller casts them. A tensor that the method leaves
            alone is returned as it came.
        """
