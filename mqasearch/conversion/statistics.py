"""What calibration knows about each attention layer: the input of every merge that looks at data.

A merge reads these types and nothing else; how they are gathered and cached is ``calibration.py``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class LayerStatistics:
    """One layer's statistics over the calibration tokens of the original model.

    Attributes:
        n_tokens: tokens that were counted.
        x_moment: ``[D + 1, D + 1]`` float64, mean of x̃x̃ᵀ with x̃ = (x, 1), x the post-norm input
            of the attention block. Its last row is the mean of x; every second moment of q, k and
            v follows from it, since they are affine in x.
        fitted: target number of KV heads → tensors by field name of ``AttentionWeights``, float64:
            what a merge that fits on activations precomputed for this layer. Empty where the merge
            does no such step.
    """

    n_tokens: int
    x_moment: Tensor
    fitted: Mapping[int, Mapping[str, Tensor]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Statistics:
    """A model's statistics.

    Attributes:
        layers: one entry per attention layer, layer 0 first.
        digest: SHA-256 (hex) over model, data, size, method and code version: the ``calibration``
            field of a ``ScoreKey``.
    """

    layers: tuple[LayerStatistics, ...]
    digest: str
