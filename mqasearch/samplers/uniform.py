"""Random masks at the budget."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from mqasearch.mask import LayerMask
from mqasearch.samplers.base import MaskSampler
from mqasearch.samplers.diverging import suspect
from mqasearch.samplers.history import MaskTrial


class UniformSampler(MaskSampler):
    """Every unseen mask at the budget is equally likely; what any search must beat.

    Where one mask after the other has no score, the layers are tried alone, and those that have
    none are left out.
    """

    name: ClassVar[str] = "random"
    summary: ClassVar[str] = "random masks at the budget, none twice"

    def propose(self, history: Sequence[MaskTrial], rng: np.random.Generator) -> LayerMask:
        """A random unseen mask at the budget, or a layer that may be at fault."""
        alone = suspect(history, self.n_layers, self.n_converted)
        return alone or self.random_mask(history, rng)
