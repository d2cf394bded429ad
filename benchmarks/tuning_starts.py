"""Where a fit of a layer may begin: closed forms, and Gauss–Newton steps; for tuning_tries.py."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from gauss_newton import fitted_queries_and_keys
from torch import Tensor

from mqasearch.conversion import ConvertibleModel, calibrate, calibration_batches, refit_layers
from mqasearch.families import AttentionWeights, family_of
from mqasearch.merging import Statistics, grouped, merge_of
from mqasearch.merging import aligned as aligned_module
from mqasearch.models import LoadedModel

Layers = Mapping[int, AttentionWeights]
DAMPING = 0.1
"""Added to the Fisher information's diagonal, whose mean is 1."""


class Starts:
    """One text, and the results that the starts on it share."""

    def __init__(self, loaded: LoadedModel, text: Sequence[Sequence[int]]) -> None:
        self.loaded = loaded
        self.text = text
        self.family = family_of(loaded.model.config.model_type)
        self.seconds = 0.0

    @cached_property
    def statistics(self) -> Statistics:
        """The calibration with the refit's results; from the cache if it is there."""
        merge = merge_of("aligned", tune=False)
        model, fingerprint = self.loaded.model, self.loaded.fingerprint
        return calibrate(model, self.family, self.text, merge, fingerprint=fingerprint)

    @contextmanager
    def timed(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - began

    def merged(self, name: str, layers: Sequence[int], *, refit: bool) -> Layers:
        """The layers merged by a closed form of the product."""
        reads_text = name == "aligned"
        with self.timed():
            merge = merge_of(name, refit=refit, tune=False)
            statistics = self.statistics if reads_text else None
            convertible = ConvertibleModel(self.loaded.model, self.family, merge, statistics)
            return {layer: convertible.merged(layer, 1) for layer in layers}

    def aligned(self, layers: Sequence[int]) -> Layers:
        """The layers after the product's ``aligned`` with refit."""
        return self.merged("aligned", layers, refit=True)

    def with_fisher_values(self, layers: Sequence[int]) -> Layers:
        """``aligned`` with the values' SVD weighted by the Fisher information at the output."""
        with self.timed():
            weights = fisher_information(self.loaded, self.text)
            every = []
            for layer, fisher in enumerate(weights):
                with _output_cost(fisher):
                    convertible = ConvertibleModel(
                        self.loaded.model,
                        self.family,
                        merge_of("aligned", refit=False, tune=False),
                        self.statistics,
                    )
                    every.append(convertible.merged(layer, 1))
            refitted = refit_layers(self.loaded.model, self.family, every, self.text)
        return {layer: refitted[layer].to(dtype=self.loaded.dtype) for layer in layers}

    def gauss_newton(self, layers: Sequence[int]) -> Layers:
        """``aligned`` with refit, then three Gauss–Newton steps of queries and keys."""
        start = self.aligned(layers)
        with self.timed():
            fitted = fitted_queries_and_keys(self.loaded, self.text, start)
        return {layer: weights.to(dtype=self.loaded.dtype) for layer, weights in fitted.items()}


STARTS: Mapping[str, Callable[[Starts, Sequence[int]], Layers]] = {
    "mean": lambda starts, layers: starts.merged("mean", layers, refit=False),
    "aligned, no refit": lambda starts, layers: starts.merged("aligned", layers, refit=False),
    "aligned": Starts.aligned,
    "Fisher values": Starts.with_fisher_values,
    "Gauss-Newton": Starts.gauss_newton,
}
"""A start's name on the command line → how it is computed."""


def fisher_information(loaded: LoadedModel, text: Sequence[Sequence[int]]) -> list[Tensor]:
    """[D, D] float64 for every layer, mean diagonal 1: E[g gᵀ] at the attention's output.

    g is the gradient of the log-likelihood of a token drawn from the model's own prediction, at
    every position. Only the first quarter of the texts is used.
    """
    model, family = loaded.model, family_of(loaded.model.config.model_type)
    generator = torch.Generator().manual_seed(0)
    sums: list[Tensor | float] = [0.0] * len(family.blocks(model))
    outputs: dict[int, Tensor] = {}

    def note(layer: int) -> Callable[..., None]:
        def hook(_: Any, __: Any, output: Any) -> None:
            found = output[0] if isinstance(output, tuple) else output
            found.requires_grad_()  # no parameter requires grad, so the first output is a leaf
            found.retain_grad()
            outputs[layer] = found

        return hook

    hooks = [
        family.attention(block).register_forward_hook(note(layer))
        for layer, block in enumerate(family.blocks(model))
    ]
    try:
        for batch in calibration_batches(model, text[: len(text) // 4], None, 1024):
            logits = model(input_ids=batch.tokens, use_cache=False).logits[batch.real]
            log_probs = logits.float().log_softmax(-1)
            drawn = torch.multinomial(log_probs.detach().exp(), 1, generator=generator)
            log_probs.gather(1, drawn).sum().backward()
            for layer, output in outputs.items():
                assert output.grad is not None
                gradient = output.grad[batch.real].double()
                sums[layer] = sums[layer] + gradient.T @ gradient
            model.zero_grad(set_to_none=True)
    finally:
        for each in hooks:
            each.remove()
    found = [each for each in sums if isinstance(each, Tensor)]
    return [each / each.diagonal().mean() for each in found]


@contextmanager
def _output_cost(fisher: Tensor) -> Iterator[None]:
    """Within the block, the cost of values is W_Oᵀ (G + damping) W_O instead of W_Oᵀ W_O."""
    plain = aligned_module._output_cost
    root = torch.linalg.cholesky(fisher + DAMPING * torch.eye(len(fisher), dtype=fisher.dtype))

    def weighted(weights: AttentionWeights) -> Tensor:
        turned = torch.einsum("DE,Dha->Eha", root, weights.o)
        per_query = torch.einsum("Dha,Dhb->hab", turned, turned)
        return grouped(per_query, weights.n_kv_heads).sum(dim=1)

    aligned_module._output_cost = weighted
    try:
        yield
    finally:
        aligned_module._output_cost = plain
