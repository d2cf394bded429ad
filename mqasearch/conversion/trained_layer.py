"""A merged layer whose weights are being fitted by gradients, inside the stock model.

The model runs with the layer's stock shapes, in which merged KV heads are repeated. The fit changes
the heads themselves, in float32. The gradient of a repeated head is the sum over its copies (the
chain rule through ``AttentionWeights.replicated``). Packing only permutes numbers, so the family's
own ``unpack`` turns gradients of the packed weights into gradients of the heads.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mqasearch.families import AttentionWeights, Family

_WIDTH = 576
"""Hidden size of SmolLM2-135M, on which learning rates were chosen."""


class TrainedLayer:
    """One attention layer of a live model, and the float32 weights that a fit changes.

    Attributes:
        masters: field of ``AttentionWeights`` → float32 parameter, for torch's optimisers. The
            parameters and their gradients are contiguous, since fused Adam pairs numbers by their
            place in memory.
    """

    def __init__(self, family: Family, attention: nn.Module, weights: AttentionWeights) -> None:
        """
        Args:
            family: the model's family.
            attention: the live layer with the original's weights; nothing is installed yet.
            weights: the start of the fit, with the merged number of KV heads.
        """
        self._family = family
        self._attention = attention
        self._originals = family.parameters(attention)
        self._n_kv_heads = family.read(attention).n_kv_heads
        device = next(iter(self._originals.values())).device
        self._weights = weights.to(dtype=torch.float32, device=device)
        self.masters = {
            name: nn.Parameter(tensor.clone(memory_format=torch.contiguous_format))
            for name, tensor in self._weights.tensors().items()
        }
        packed = family.pack(self._weights.replicated(self._n_kv_heads))
        self._stock = {
            name: nn.Parameter(tensor.to(dtype=self._originals[name].dtype).clone())
            for name, tensor in packed.items()
        }

    @contextmanager
    def installed(self) -> Iterator[None]:
        """The live model has the fitted layer within the block, and its original layer after it."""
        self._family.install(self._attention, self._stock)
        try:
            yield
        finally:
            self._family.install(self._attention, self._originals)

    def take_gradients(self, scale: float = 1.0) -> None:
        """Move the gradients of the live parameters to the masters, divided by ``scale``."""
        gradients = self._family.unpack(
            self._attention, {name: _gradient(each) for name, each in self._stock.items()}
        )
        for name, gradient in gradients.tensors().items():
            master = self.masters[name]
            if gradient.shape != master.shape:  # copies of a head
                gradient = torch.unflatten(gradient.float(), 0, (len(master), -1)).sum(1)
            master.grad = gradient.float().clone(memory_format=torch.contiguous_format).div_(scale)
        self.forget_gradients()

    def forget_gradients(self) -> None:
        """Delete the gradients that a backward pass left at the live parameters."""
        for parameter in self._stock.values():
            parameter.grad = None

    @torch.no_grad()
    def write(self) -> None:
        """Give the live parameters the values of the masters, in the model's dtype."""
        packed = self._family.pack(self.weights().replicated(self._n_kv_heads))
        for name, tensor in packed.items():
            self._stock[name].copy_(tensor)

    def weights(self) -> AttentionWeights:
        """The masters, with the merged number of KV heads; views of them."""
        tensors: dict[str, Any] = {name: each.detach() for name, each in self.masters.items()}
        return replace(self._weights, **tensors)

    def values(self) -> dict[str, Tensor]:
        """A copy of the masters."""
        return {name: each.detach().clone() for name, each in self.masters.items()}

    @torch.no_grad()
    def set_values(self, values: Mapping[str, Tensor]) -> None:
        """Give masters and live parameters the values of an earlier copy."""
        for name, tensor in values.items():
            self.masters[name].copy_(tensor)
        self.write()


def _gradient(parameter: nn.Parameter) -> Tensor:
    """The parameter's gradient; zero if the loss does not depend on the parameter."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


@contextmanager
def all_installed(layers: Sequence[TrainedLayer]) -> Iterator[None]:
    """The live model has all these fitted layers within the block."""
    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(layer.installed())
        yield


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter of the model requires a gradient within the block."""
    asking = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in asking:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)


def learning_rate(rate: float, hidden_size: int) -> float:
    """Adam's learning rate for a model of this width, from a good one for 576 dimensions.

    It falls with the number of inputs of a projection (Yang et al., "Tensor Programs V", 2022,
    table 3), so that a step changes outputs equally in models of all widths.

    Args:
        rate: a good learning rate for 576 dimensions.
        hidden_size: the model's hidden size.
    """
    return min(rate * _WIDTH / hidden_size, 2 * rate)


def rate_at(step: int, n_steps: int, n_warm: int) -> float:
    """Share of the learning rate at a step: a linear rise, then a cosine to zero.

    Source: Loshchilov and Hutter, "SGDR", 2017, equation 5, without restarts.
    """
    rise = min(1.0, (step + 1) / max(n_warm, 1))
    return rise * 0.5 * (1 + math.cos(math.pi * step / n_steps))
