"""The search space of every study of masks: one categorical parameter per layer."""

from optuna.distributions import BaseDistribution, CategoricalDistribution

from mqasearch.mask import LayerMask

_CHOICES = (False, True)


def param_name(layer: int) -> str:
    """Name of a layer's parameter, ``layer_00`` for the first; sorts like the layers."""
    return f"layer_{layer:02d}"


def search_space(n_layers: int) -> dict[str, BaseDistribution]:
    """One distribution over ``(False, True)`` per layer, layer 0 first; a new dict at each call."""
    return {param_name(layer): CategoricalDistribution(_CHOICES) for layer in range(n_layers)}


def mask_params(mask: LayerMask) -> dict[str, bool]:
    """The mask as parameters, as ``study.enqueue_trial`` takes them."""
    return {param_name(layer): flag for layer, flag in enumerate(mask)}
