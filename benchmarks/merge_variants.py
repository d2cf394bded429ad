"""Variants of ``aligned`` that were tried and are no part of the product; merges.py measures them.

Each is a function from what they share to a ``Replacer``: what it needs whatever the mask is, it
computes at once. All go to one KV head. What several variants need is computed once.
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

from mqasearch.conversion import (
    ConvertibleModel,
    Statistics,
    calibrate,
    merge_of,
    refit_layers,
    refit_sequential,
)
from mqasearch.families import AttentionWeights, Family

Replacer = Callable[[Sequence[int]], Mapping[int, AttentionWeights]]
"""Layers that are converted together → what each becomes."""


@dataclass
class Shared:
    """The original model, its calibration text, and what is common to several variants.

    Attributes:
        model: the original; whoever changes it puts it back.
        family: of the model.
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
        """The plain moments."""
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
        """Every layer after so many rounds of ``iterated``; rounds are remembered."""
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
        """The product's refit, parallel form, in the precision of the product's."""
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
    """``aligned``, refitted one layer after the other for each set of layers."""
    merged = shared.aligned

    def replacer(layers: Sequence[int]) -> Mapping[int, AttentionWeights]:
        chosen = {layer: merged[layer] for layer in layers}
        return refit_sequential(shared.model, shared.family, chosen, shared.text)

    return replacer


def first_token(shared: Shared) -> Replacer:
    """``aligned`` with position 0 counted as any other token; refitted."""
    return _of(shared.refit(shared.merged(first_token=1.0)))


def attended(shared: Shared, *, count_first: bool = False, in_values: bool = False) -> Replacer:
    """``aligned`` with a token weighted by the attention it receives; refitted.

    w_u is the mean over query heads of Σ_t a_{h,tu}. Where a key errs, that is what the logits pay;
    queries keep the plain moment.

    Args:
        count_first: count position 0, with its weight; else it is left out, as in ``aligned``.
        in_values: values use the weighted moment too, not the plain one.
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
    """``aligned`` and refit, then in turn values given W_O, and W_O given values, ``rounds`` times.

    The joint SVD takes W_O as the cost of an error in each KV head's own values. Once refitted, W_O
    reads the merged values only and is no cost of the others any more, so the values' turn is the
    problem behind it: the v' = Σ_s A_s v_s for which the refitted W_O, with the attention of the
    merged keys, comes closest to the original output (ridge regression of A, streamed statistics,
    conjugate gradients). W_O's turn is the refit once more, shrunk towards the last one. Keys have
    no turn: their closed form does not depend on values or W_O.
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
"""What the command line calls a variant → how it is made."""

OF_SEVERAL_LAYERS = frozenset({"sequential"})
"""Variants that are ``aligned`` itself where only one layer is converted."""


def _of(layers: Sequence[AttentionWeights]) -> Replacer:
    """The parallel form: what a layer becomes does not depend on the others."""
    return lambda chosen: {layer: layers[layer] for layer in chosen}
