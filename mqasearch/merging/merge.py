"""The interface between one layer's weights and the methods that merge its KV heads."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from mqasearch.families import AttentionWeights
from mqasearch.merging.layer_statistics import LayerStatistics


@dataclass(frozen=True, kw_only=True)
class Merge(ABC):
    """A method that gives a layer fewer KV heads, in closed form.

    Subclasses are frozen dataclasses; their fields are the parameters of the method. ``merge`` is
    called once per (layer, target) and its result is kept, so it may be slow. It is a pure function
    of its arguments, so that every worker gets the same layer. It may be called on any layer in any
    order.

    Example:
        >>> from mqasearch.merging import merge_of
        >>> merge_of("mean").needs_calibration, merge_of("aligned").needs_calibration
        (False, True)

    Attributes:
        name: the method's name in a study file.
        needs_statistics: whether the method cannot work without calibration.
        reads_statistics: whether its result depends on the calibration, if there is one.
        refit: whether the output projection is fitted to the original layer's outputs after
            merging, in closed form.
        tune: whether all four projections are then fitted to these outputs by gradients.

    Both fits are part of the calibration (``LayerStatistics.fitted``), not of ``merge``.
    """

    name: ClassVar[str]
    needs_statistics: ClassVar[bool] = False
    reads_statistics: ClassVar[bool] = False

    refit: bool = False
    tune: bool = False

    @property
    def is_fitted(self) -> bool:
        """Whether layers are fitted after merging; the calibration then holds the fitted layers."""
        return self.refit or self.tune

    @property
    def needs_calibration(self) -> bool:
        """Whether the method or its fit cannot work without calibration."""
        return self.needs_statistics or self.is_fitted

    @property
    def reads_calibration(self) -> bool:
        """Whether a merged layer depends on the calibration, if there is one."""
        return self.reads_statistics or self.is_fitted

    @property
    def parameters(self) -> dict[str, Any]:
        """The method's parameters by name, without those that are false and false by default."""
        values = {field.name: (getattr(self, field.name), field.default) for field in fields(self)}
        return {
            name: value
            for name, (value, default) in values.items()
            if value is not False or default is not False
        }

    @property
    def digest(self) -> str:
        """Name and parameters in canonical form: ``mean``, ``mean(refit=True)``."""
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
            weights: the layer, on the CPU, in the model's dtype; not to be changed in place.
            target: number of KV heads; it divides ``weights.n_kv_heads`` and is smaller.
            statistics: this layer's statistics; never None if ``needs_statistics``.

        Returns:
            Weights in any floating dtype; the caller casts them. A tensor that the method does not
            change is returned as it is.
        """
