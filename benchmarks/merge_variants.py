"""Variants of ``aligned`` that were tried and are no part of the product; merges.py measures them.

Each variant is a function that takes ``Shared`` and returns a ``Replacer``. It computes all that
does not depend on the mask at once. All variants merge to one KV head. ``Shared`` computes only
once what several variants need.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
from merge_attended import AttendedAlignment, ReceivedMoments, received_moments
from merge_iterated import ValueEquations, value_equations
from torch import nn
from transformers import PreTrainedModel

from mqasearch.conversion import ConvertibleModel, calibrate, refit_layers, refit_sequential
from mqasearch.families import AttentionWeights, Family
from mqasearch.merging import Statistics, merge_of

Replacer = Callable[[Sequence[int]], Mapping[int, AttentionWeights]]
"""Layers that are converted together → the weights of each after conversion."""


@dataclass
class Shared:
    """The original model, its calibration text, and results that several variants need.

    Attributes:
        model: the original model; code that changes it must restore it.
        family: the model's family.
        text: token ids of the calibration texts.
    """

    model: PreTrainedModel
    family: Family
    text: Sequence[Sequence[int]]
    _alternated: list[list[AttentionWeights]] = field(default_factory=list)

    @cached_property
    def attentions(self) -> list[nn.Module]:
        return [self.family.attention(block) for block in self.family.blocks(self.model)]

    @cached_property
    def statistics(self) -> Statistics:
        """The calibration with the plain moments."""
        return calibrate(
            self.model, self.family, self.text, merge_of("aligned", refit=False), fingerprint=None
        )

    @cached_property
    def aligned(self) -> list[AttentionWeights]:
        """Every layer after ``aligned`` without refit."""
        return self.merged()

    @cached_property
    def refitted(self) -> list[AttentionWeights]:
        """Every layer after ``aligned`` with refit."""
        return self.refit(self.aligned)

    @cached_property
    def received(self) -> list[ReceivedMoments]:
        """The moments weighted by attention."""
        return received_moments(self.model, self.family, self.text)

    def alternated(self, rounds: int) -> list[AttentionWeights]:
        """Every layer after ``rounds`` rounds of ``iterated``; the rounds are cached."""
        rows = self._alternated
        if not rows:
            rows.append(self.refitted)
        while len(rows) <= rounds:
            values = [
                each.solved(weights)
                for each, weights in zip(self._value_equations, rows[-1], strict=True)
            ]
            rows.append(self.refit(values))
        return rows[rounds]

    @cached_property
    def _value_equations(self) -> list[ValueEquations]:
        return value_equations(self.model, self.family, self.aligned, self.text)

    def merged(self, **parameters: object) -> list[AttentionWeights]:
        """Every layer after ``aligned`` with these parameters, without refit."""
        merge = merge_of("aligned", refit=False, **parameters)
        convertible = ConvertibleModel(self.model, self.family, merge, self.statistics)
        return [convertible.merged(layer, 1) for layer in range(convertible.shape.n_layers)]

    def refit(self, merged: Sequence[AttentionWeights]) -> list[AttentionWeights]:
        """The layers after the product's refit in its parallel form and its precision."""
        refitted = refit_layers(self.model, self.family, merged, self.text)
        return [each.to(dtype=self.dtype) for each in refitted]

    @property
    def dtype(self) -> torch.dtype:
        return self.family.read(self.attentions[0]).q.dtype

    @contextmanager
    def installed(self, layers: Mapping[int, AttentionWeights]) -> Iterator[None]:
        """The live model with these layers, for the length of a ``with`` block."""
        originals = {layer: self.family.parameters(self.attentions[layer]) for layer in layers}
        try:
            for layer, weights in layers.items():
                self.family.write(self.attentions[layer], weights)
            yield
        finally:
            for layer, parameters in originals.items():
                self.family.install(self.attentions[layer], parameters)


def sequential(shared: Shared) -> Replacer:
    """``aligned``, with a refit of one layer after the other for each set of layers."""
    merged = shared.aligned

    def replacer(layers: Sequence[int]) -> Mapping[int, AttentionWeights]:
        chosen = {layer: merged[layer] for layer in layers}
        return refit_sequential(shared.model, shared.family, chosen, shared.text)

    return replacer


def first_token(shared: Shared) -> Replacer:
    """``aligned`` with position 0 counted like any other token; refitted."""
    return _of(shared.refit(shared.merged(first_token=1.0)))


def attended(shared: Shared, *, count_first: bool = False, in_values: bool = False) -> Replacer:
    """``aligned`` with a token weighted by the attention it receives; refitted.

    The weight w_u is the mean over query heads of Σ_t a_{h,tu}: it is the cost of a key's error in
    the logits. Queries keep the plain moment.

    Args:
        count_first: whether position 0 counts, with its weight; if not, it is left out, as in
            ``aligned``.
        in_values: whether values use the weighted moment too, instead of the plain one.
    """
    layers = []
    for attention, plain, received in zip(
        shared.attentions, shared.statistics.layers, shared.received, strict=True
    ):
        weights = shared.family.read(attention).to(device="cpu", dtype=torch.float64)
        weighted = received.moment(count_first)
        alignment = AttendedAlignment(
            weights, plain.moment(0), weighted, weighted if in_values else plain.moment(0)
        )
        layers.append(alignment.merged(alignment.groups(1)).to(dtype=shared.dtype))
    return _of(shared.refit(layers))


def iterated(shared: Shared, *, rounds: int) -> Replacer:
    """``aligned`` and refit, then ``rounds`` times values for given W_O and W_O for these values.

    The joint SVD uses W_O as the cost of an error in each KV head's own values. The refitted W_O
    reads only the merged values, so it is no such cost any more. Hence the step for the values
    solves the original problem: it finds the v' = Σ_s A_s v_s for which the refitted W_O, with the
    attention of the merged keys, comes closest to the original output (ridge regression of A,
    streamed statistics, conjugate gradients). The step for W_O is another refit, shrunk towards the
    last one. Keys have no step: their closed form does not depend on values or W_O.
    """
    return _of(shared.alternated(rounds))


VARIANTS: Mapping[str, Callable[[Shared], Replacer]] = {
    "sequential": sequential,
    "first-token": first_token,
    "attended": attended,
    "attended-first": partial(attended, count_first=True),
    "attended-values": partial(attended, in_values=True),
    "iterated": partial(iterated, rounds=1),
    "iterated-3": partial(iterated, rounds=3),
}
"""A variant's name on the command line → the function that makes it."""

OF_SEVERAL_LAYERS = frozenset({"sequential"})
"""Variants that are equal to ``aligned`` if only one layer is converted."""


def _of(layers: Sequence[AttentionWeights]) -> Replacer:
    """The parallel form: the result of a layer does not depend on the other converted layers."""
    return lambda chosen: {layer: layers[layer] for layer in chosen}
