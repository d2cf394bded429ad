"""Tiny models whose KV heads are images of one another, and their calibration."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mqasearch.conversion import ConvertibleModel, calibrate
from mqasearch.families import AttentionWeights, family_of
from mqasearch.merging import Merge, Statistics
from tests.tiny import VOCABULARY, tiny_model

CLOSE: dict[str, Any] = {"atol": 2e-4, "rtol": 2e-4}


def texts(n_texts: int = 24, *, seed: int = 0) -> list[list[int]]:
    """Random token sequences of 2 to 13 tokens."""
    generator = torch.Generator().manual_seed(seed)

    def row(length: int) -> list[int]:
        return torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()

    return [row(2 + index % 12) for index in range(n_texts)]


def statistics_of(model: PreTrainedModel, merge: Merge, **options: Any) -> Statistics:
    family = family_of(model.config.model_type)
    return calibrate(model, family, options.pop("sequences", texts()), merge, **options)


def convertible_of(model: PreTrainedModel, merge: Merge, **options: Any) -> ConvertibleModel:
    family = family_of(model.config.model_type)
    statistics = statistics_of(model, merge, **options) if merge.reads_calibration else None
    return ConvertibleModel(model, family, merge, statistics)


def rewritten(
    model: PreTrainedModel, change: Callable[[AttentionWeights], AttentionWeights]
) -> PreTrainedModel:
    """The model with ``change(weights)`` in every layer."""
    family = family_of(model.config.model_type)
    for block in family.blocks(model):
        attention = family.attention(block)
        family.write(attention, change(family.read(attention).to(device="cpu")))
    return model


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def well_conditioned(seed: int, n: int, d: int) -> Tensor:
    """[n, d, d] invertible: rotations with singular values from 0.5 to 2."""
    if d == 0:
        return torch.zeros(n, 0, 0)
    u, _, v = torch.linalg.svd(random(seed, n, d, d))
    return u @ torch.diag(torch.linspace(0.5, 2.0, d)) @ v


def free_key_maps(weights: AttentionWeights, seed: int) -> Tensor:
    """[n, d, d]: one map per KV head, of a kind that this layer's query can absorb."""
    n, d, turning = weights.n_kv_heads, weights.head_dim, weights.rope.rotary_dims
    maps = torch.zeros(n, d, d)
    if weights.has_qk_norm:
        signs = random(seed, n, len(weights.rope.pairs)).sign()
        for pair, (real, imaginary) in enumerate(weights.rope.pairs):
            maps[:, real, real] = maps[:, imaginary, imaginary] = signs[:, pair]
        return maps
    size = 0.5 + torch.rand(n, turning // 2, generator=torch.Generator().manual_seed(seed))
    angle = 3 * random(seed + 1, n, turning // 2)
    for pair, (real, imaginary) in enumerate(weights.rope.pairs):
        maps[:, real, real] = maps[:, imaginary, imaginary] = size[:, pair] * angle[:, pair].cos()
        maps[:, imaginary, real] = size[:, pair] * angle[:, pair].sin()
        maps[:, real, imaginary] = -maps[:, imaginary, real]
    maps[:, turning:, turning:] = well_conditioned(seed + 2, n, d - turning)
    return maps


def images_of(weights: AttentionWeights, sources: list[int], seed: int) -> AttentionWeights:
    """KV head s becomes the image of head ``sources[s]`` under a free map; biases too."""
    keys = free_key_maps(weights, seed)
    values = well_conditioned(seed + 3, weights.n_kv_heads, weights.head_dim)

    def mapped(maps: Tensor, tensor: Tensor | None) -> Any:
        if tensor is None:
            return None
        source = tensor[sources]
        return maps @ source if source.ndim == 3 else (maps @ source[..., None])[..., 0]

    return replace(
        weights,
        k=mapped(keys, weights.k),
        k_bias=mapped(keys, weights.k_bias),
        v=mapped(values, weights.v),
        v_bias=mapped(values, weights.v_bias),
    )


def model_of_images(model_type: str, sources: list[int], seed: int = 0) -> PreTrainedModel:
    return rewritten(
        tiny_model(model_type, seed=seed), lambda weights: images_of(weights, sources, seed)
    )
