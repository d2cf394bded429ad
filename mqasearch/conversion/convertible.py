"""A live model whose layers can be given fewer KV heads, and all of them again, at once."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from mqasearch.errors import MaskError, ModelError
from mqasearch.families import AttentionWeights, Family
from mqasearch.mask import KVHeads, ModelShape
from mqasearch.merging import LayerStatistics, Merge, Statistics

Parameters = dict[str, nn.Parameter]


@dataclass(frozen=True, slots=True, eq=False)
class HealedLayers:
    """The converted layers of one mask after healing.

    Attributes:
        layers: converted layer → weights in the model's dtype, on the CPU.
        how: what decided them, in canonical form; part of the key of their scores.
    """

    layers: Mapping[int, AttentionWeights]
    how: str

    def layer(self, layer: int, target: int) -> AttentionWeights:
        """The weights of one healed layer.

        Raises:
            ValueError: the layer was not healed with ``target`` KV heads.
        """
        found = self.layers.get(layer)
        if found is None or found.n_kv_heads != target:
            raise ValueError(f"layer {layer} was not healed with {target} KV heads")
        return found


class ConvertibleModel:
    """A model, and every replacement of its attention layers that has been asked for.

    Shapes and forward pass stay those of the stock model: a merged KV head is repeated, which gives
    the logits of the model that really has fewer heads (merging.md, law 9). The replacement of a
    (layer, target) depends on nothing else, so it is computed once, kept, and swapped in and out by
    reference. Restoring the original is therefore always exact.

    Use one instance per process; it is not thread-safe, as the model itself changes. Move the model
    to its device and dtype first: the replacements that are kept here do not move with it.

    Attributes:
        model: the live model; a forward pass runs the conversion that is applied.
        family: how its weights are read and written.
        merge: how heads are merged.
        shape: the unconverted model's shape.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        family: Family,
        merge: Merge,
        statistics: Statistics | None = None,
        healed: HealedLayers | None = None,
    ) -> None:
        """Take hold of a model; nothing is converted yet.

        Args:
            model, family, merge: see the attributes.
            statistics: calibration, for a merge that reads any.
            healed: layers that replace merged ones, for the one mask that they belong to.

        Raises:
            ModelError: there are no KV heads to merge (already multi-query), layers differ in
                their number of heads, or a weight is NaN or infinite.
            ValueError: ``merge`` needs calibration and got none, or the calibration has another
                number of layers.
        """
        self.model = model
        self.family = family
        self.merge = merge
        self._attentions = [family.attention(block) for block in family.blocks(model)]
        self.shape = _shape(model, family, self._attentions)
        if statistics is None and merge.needs_calibration:
            raise ValueError(f"merge {merge.name!r} needs calibration statistics")
        if statistics is not None and len(statistics.layers) != self.shape.n_layers:
            raise ValueError(
                f"statistics of {len(statistics.layers)} layers for {self.shape.n_layers}"
            )
        self._statistics = statistics
        self._healed = healed
        self._originals = [family.parameters(attention) for attention in self._attentions]
        self._weights = [family.read(attention) for attention in self._attentions]
        self._replacements: dict[tuple[int, int], Parameters] = {}
        self._kv_heads = self.shape.original

    def with_healed(self, layers: HealedLayers) -> "ConvertibleModel":
        """The same model with these layers in place of merged ones.

        No conversion may be applied to the model when this is called.
        """
        return ConvertibleModel(self.model, self.family, self.merge, self._statistics, layers)

    @property
    def merge_name(self) -> str:
        """Name and parameters of the merge, and how layers were healed; canonical."""
        return (
            self.merge.digest if self._healed is None else f"{self.merge.digest} {self._healed.how}"
        )

    @property
    def calibration(self) -> str:
        """Digest of the statistics if the merge reads any, else empty."""
        if self._statistics is None or not self.merge.reads_calibration:
            return ""
        return self._statistics.digest

    @property
    def kv_heads(self) -> KVHeads:
        """The number of KV heads of every layer now."""
        return self._kv_heads

    def apply(self, kv_heads: KVHeads) -> None:
        """Give every layer this number of KV heads; ``shape.original`` restores the model.

        The result depends on ``kv_heads`` alone, not on what was applied before.

        Raises:
            MaskError: another number of layers, or a number of heads that does not divide the
                model's.
            ModelError: a merge gave NaN or infinity. Nothing is changed then.
        """
        self.check(kv_heads)
        wanted = [self._parameters(layer, heads) for layer, heads in enumerate(kv_heads)]
        for attention, parameters in zip(self._attentions, wanted, strict=True):
            self.family.install(attention, parameters)
        self._kv_heads = tuple(kv_heads)

    @contextmanager
    def converted(self, kv_heads: KVHeads) -> Iterator[PreTrainedModel]:
        """``apply`` within a ``with`` block; the conversion applied before is restored after it."""
        before = self._kv_heads
        self.apply(kv_heads)
        try:
            yield self.model
        finally:
            self.apply(before)

    def prepare(
        self, targets: Iterable[int] = (1,), progress: Callable[[int, int], None] | None = None
    ) -> None:
        """Compute every layer's replacement now, so that no trial pays for it.

        Args:
            targets: numbers of KV heads.
            progress: called with (done, total) after every replacement.

        Raises:
            MaskError, ModelError: as in ``apply``.
        """
        todo = [(layer, target) for target in targets for layer in range(self.shape.n_layers)]
        for done, (layer, target) in enumerate(todo, start=1):
            self._check_heads(target)
            self._parameters(layer, target)
            if progress is not None:
                progress(done, len(todo))

    def original(self, layer: int) -> AttentionWeights:
        """The weights of one unconverted layer; views, not to be changed."""
        return self._weights[layer]

    def merged(self, layer: int, target: int) -> AttentionWeights:
        """The weights of one layer with ``target`` KV heads, not replicated: what exports write.

        They are in the model's dtype, on the CPU. They are computed anew at each call, except for
        a merge with a refit or a tuning: then the calibration holds the fitted layer.

        Raises:
            MaskError: ``target`` does not divide the model's number of KV heads.
            ModelError: the merge gave NaN or infinity.
            ValueError: the calibration fitted no layer to ``target`` KV heads, or no such layer was
                healed.
        """
        self._check_heads(target)
        original = self._weights[layer]
        dtype = original.q.dtype
        original = original.to(device="cpu")
        if target == self.shape.n_kv_heads:
            return original
        if self._healed is not None:
            return self._healed.layer(layer, target)
        statistics = None if self._statistics is None else self._statistics.layers[layer]
        if self.merge.is_fitted:
            merged = _fitted(original, target, statistics).to(dtype=dtype)
        else:
            merged = self.merge.merge(original, target, statistics).to(dtype=dtype)
        merged.check_finite(f"layer {layer} after merge {self.merge_name!r}")
        return merged

    def _parameters(self, layer: int, target: int) -> Parameters:
        if target == self.shape.n_kv_heads:
            return self._originals[layer]
        key = (layer, target)
        if key not in self._replacements:
            merged = self.merged(layer, target)
            self._replacements[key] = self.family.stock_parameters(
                merged, self.shape.n_kv_heads, self._originals[layer]
            )
        return self._replacements[key]

    def check(self, kv_heads: KVHeads) -> None:
        """Check that ``kv_heads`` fits the model, as ``apply`` does.

        Raises:
            MaskError: another number of layers, or a number of heads that does not divide the
                model's.
        """
        if len(kv_heads) != self.shape.n_layers:
            raise MaskError(f"the mask has {len(kv_heads)} layers, the model {self.shape.n_layers}")
        for heads in set(kv_heads):
            self._check_heads(heads)

    def _check_heads(self, target: int) -> None:
        if target < 1 or self.shape.n_kv_heads % target:
            raise MaskError(
                f"{target} KV heads do not divide the model's {self.shape.n_kv_heads} equally; "
                f"possible: {', '.join(map(str, divisors(self.shape.n_kv_heads)))}"
            )


def divisors(number: int) -> tuple[int, ...]:
    """The numbers of KV heads that a layer with ``number`` of them can have, ascending."""
    return tuple(candidate for candidate in range(1, number + 1) if number % candidate == 0)


def _fitted(
    original: AttentionWeights, target: int, statistics: LayerStatistics | None
) -> AttentionWeights:
    if statistics is None or target not in statistics.fitted:
        raise ValueError(f"the calibration fitted no layer to {target} KV heads")
    tensors: dict[str, Any] = dict(statistics.fitted[target])
    return replace(original, **tensors)


def _shape(model: PreTrainedModel, family: Family, attentions: list[nn.Module]) -> ModelShape:
    all_weights = [family.read(attention) for attention in attentions]
    heads = {weights.n_kv_heads for weights in all_weights}
    if len(heads) != 1:
        raise ModelError(
            f"the layers have {sorted(heads)} KV heads: this model was converted already; "
            "start from the original"
        )
    for layer, weights in enumerate(all_weights):
        weights.check_finite(f"layer {layer}")
    first = all_weights[0]
    if first.n_kv_heads == 1:
        raise ModelError(
            f"this {model.config.model_type} model is multi-query already: each layer has a single "
            "KV head, there is nothing to merge; choose one with more KV heads"
        )
    return ModelShape(
        n_layers=len(attentions),
        n_heads=first.n_heads,
        n_kv_heads=first.n_kv_heads,
        head_dim=first.head_dim,
        hidden_size=first.hidden_size,
        bytes_per_element=torch.empty(0, dtype=first.q.dtype).element_size(),
    )
