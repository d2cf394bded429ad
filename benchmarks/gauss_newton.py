"""Queries and keys of a merged layer by Gauss–Newton; a try of tuning_tries.py."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, vjp

from mqasearch.conversion import calibration_batches
from mqasearch.conversion.tuning import _Example, _split, _Stream
from mqasearch.families import AttentionWeights, Family, family_of
from mqasearch.models import LoadedModel, ResumableModel

STEPS, ITERATIONS, DAMPING = 3, 8, 0.03
TOKENS = 8192
NAMES = ("q", "k")
Point = dict[str, Tensor]


def fitted_queries_and_keys(
    loaded: LoadedModel, text: Sequence[Sequence[int]], start: Mapping[int, AttentionWeights]
) -> dict[int, AttentionWeights]:
    """Three damped Gauss–Newton steps on |Y' − Y|² of each layer, on the first 8k tokens.

    Each step solves (JᵀJ + damping) d = Jᵀ(Y − Y') by eight iterations of conjugate gradients, in
    coordinates in which the layer's inputs are white. A step that does not help is halved.

    Args:
        loaded: the original, with eager attention.
        text: token ids of calibration texts.
        start: layer → merged weights to start from.
    """
    model, family = loaded.model, family_of(loaded.model.config.model_type)
    resumable = ResumableModel(model, family.blocks(model))
    chosen, n_tokens = [], 0
    for each in _split(text)[0]:
        if n_tokens < TOKENS:
            chosen.append(each)
            n_tokens += len(each)
    stream = _Stream(resumable, list(calibration_batches(model, chosen, None, 2048)))
    fitted = {}
    for layer in range(max(start) + 1):
        attention = family.attention(resumable.blocks[layer])
        examples = stream.through(layer, attention)
        if layer in start:
            fitted[layer] = _Layer(family, attention, start[layer], examples).fitted()
    return fitted


class _Layer:
    """One layer's least-squares problem, whitened by the second moment of its inputs."""

    def __init__(
        self,
        family: Family,
        attention: nn.Module,
        weights: AttentionWeights,
        examples: Sequence[_Example],
    ) -> None:
        self._family, self._attention = family, attention
        self._weights = weights.to(dtype=torch.float32)
        self._n_kv_heads = family.read(attention).n_kv_heads
        self._examples = examples
        inputs = torch.cat([_input(each)[each.real].float() for each in examples]).double()
        moment = inputs.T @ inputs / len(inputs)
        moment += 1e-4 * moment.diagonal().mean() * torch.eye(len(moment), dtype=moment.dtype)
        root = torch.linalg.cholesky(moment)
        self._unwhite = torch.linalg.inv(root).float()  # [D, D]: white rows → weights
        self._white = root.float()

    def fitted(self) -> AttentionWeights:
        tensors = self._weights.tensors()
        point = {name: tensors[name] @ self._white for name in NAMES}
        least = self._error(point)
        for _ in range(STEPS):
            step = self._solved(point)
            share = 1.0
            for _ in range(4):
                ahead = {name: point[name] + share * step[name] for name in NAMES}
                if (error := self._error(ahead)) < least:
                    point, least = ahead, error
                    break
                share /= 2
        return self._at(point)

    def _at(self, point: Point) -> AttentionWeights:
        moved: dict[str, Any] = {name: point[name] @ self._unwhite for name in NAMES}
        return replace(self._weights, **moved)

    def _output(self, example: _Example) -> Callable[[Point], Tensor]:
        def output(point: Point) -> Tensor:
            packed = self._family.pack(self._at(point).replicated(self._n_kv_heads))
            found = functional_call(self._attention, packed, example.args, example.keywords)
            first = found[0] if isinstance(found, tuple) else found
            return first * example.real[..., None]

        return output

    @torch.no_grad()
    def _error(self, point: Point) -> float:
        return sum(
            float((self._output(each)(point) - each.wanted * each.real[..., None]).square().sum())
            for each in self._examples
        )

    def _solved(self, point: Point) -> Point:
        """Conjugate gradients (Hestenes and Stiefel, 1952)."""
        gradient = {name: torch.zeros_like(tensor) for name, tensor in point.items()}
        for each in self._examples:
            found, pull = vjp(self._output(each), point)
            (back,) = pull((each.wanted * each.real[..., None] - found).detach())
            gradient = _sum(gradient, back)
        torch.manual_seed(0)
        probe = {name: torch.randn_like(tensor).sign() for name, tensor in point.items()}
        n_numbers = sum(map(Tensor.numel, probe.values()))
        damping = DAMPING * _inner(probe, self._curved(point, probe, 0.0)) / n_numbers
        step = {name: torch.zeros_like(tensor) for name, tensor in point.items()}
        left, along = gradient, gradient
        size = _inner(left, left)
        for _ in range(ITERATIONS):
            curved = self._curved(point, along, damping)
            length = size / _inner(along, curved)
            step = _sum(step, along, length)
            left = _sum(left, curved, -length)
            size, before = _inner(left, left), size
            along = _sum(left, along, size / before)
        return step

    def _curved(self, point: Point, along: Point, damping: float) -> Point:
        """(JᵀJ + damping) times ``along``."""
        total = {name: damping * tensor for name, tensor in along.items()}
        for each in self._examples:
            output = self._output(each)
            _, pushed = jvp(output, (point,), (along,))
            _, pull = vjp(output, point)
            (back,) = pull(pushed)
            total = _sum(total, back)
        return {name: tensor.detach() for name, tensor in total.items()}


def _input(example: _Example) -> Tensor:
    found = example.args[0] if example.args else example.keywords["hidden_states"]
    assert isinstance(found, Tensor)
    return found


def _inner(one: Point, two: Point) -> float:
    return sum(float((one[name] * two[name]).sum()) for name in one)


def _sum(one: Point, two: Point, share: float = 1.0) -> Point:
    return {name: one[name] + share * two[name] for name in one}
