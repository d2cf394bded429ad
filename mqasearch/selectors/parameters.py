"""Masks as parameters of an Optuna study: one categorical parameter per layer."""

from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution

from mqasearch.mask import LayerMask
from mqasearch.search_space import SearchSpace


def param_name(layer: int) -> str:
    """Name of a layer's parameter, ``layer_00`` for the first; sorts like the layers."""
    return f"layer_{layer:02d}"


def distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    """One distribution per layer, layer 0 first, over the space's choices; a new dict each time."""
    choices = sorted(space.choices)
    return {param_name(n): CategoricalDistribution(choices) for n in range(space.n_layers)}


def mask_params(mask: LayerMask, space: SearchSpace) -> dict[str, bool | int]:
    """The mask as parameters, as ``study.enqueue_trial`` takes them."""
    return {param_name(layer): space.choices[level] for layer, level in enumerate(mask)}


def levels_of(params: Mapping[str, Any], space: SearchSpace) -> dict[int, int]:
    """Layer → level, for the layers that ``params`` give a value of the space's choices."""
    found = {layer: params.get(param_name(layer)) for layer in range(space.n_layers)}
    return {
        layer: space.choices.index(value)
        for layer, value in found.items()
        if value is not None and value in space.choices
    }
