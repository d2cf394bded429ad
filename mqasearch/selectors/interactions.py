"""A Gaussian process over masks: each layer does harm of its own, and layers interact in pairs."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_PAIR_SHARES = (0.3, 0.1, 1.0, 0.03, 0.01)
_NOISE_SHARES = (1e-6, 1e-4, 1e-2)
_COMMON = 0.25


class InteractionModel:
    """Predicts the loss of masks from the losses of others.

    The loss minus the original's is modelled as ``Σ_l a_l m_l + Σ_{l<j} b_lj m_l m_j`` with
    ``a_l ~ N(0, s_l²)`` and ``b_lj ~ N(μ √(s_l s_j), ρ s_l s_j)``, ``μ ~ N(0, τ)``, where ``s_l``
    is the harm that layer ``l`` does alone: layers that do much harm also interact much, and in a
    real model most pairs do more harm together than apart, which ``μ`` accounts for. Written as a
    kernel, the model needs no list of pairs:

        k(m, m') = A + ρ/2 · ((Σ s_l m_l m'_l)² − A) + τ q(m) q(m')
        A = Σ s_l² m_l m'_l,    q(m) = ((Σ √s_l m_l)² − Σ s_l m_l) / 2

    The regression is the usual one (Rasmussen & Williams 2006, algorithm 2.1). ρ and the noise,
    which stands for all effects of three layers or more, are the values with the largest marginal
    likelihood on a small grid. A second-order model of binary masks is the idea of BOCS (Baptista &
    Poloczek 2018); scales by layer and the common ``μ`` are ours.

    Args:
        flags: ``[n, n_layers]`` flags of the scored masks, without the original.
        excess: ``[n]`` losses of these masks minus the original's, finite.
        scales: ``[n_layers]`` the ``s_l``, positive.
    """

    def __init__(self, flags: Floats, excess: Floats, scales: Floats) -> None:
        self._flags = flags
        self._scales = scales
        single, pair = self._kernels(flags, flags)
        unit = float(np.mean(scales**2)) * np.eye(len(flags))
        best = -np.inf
        for share in _PAIR_SHARES:
            for noise in _NOISE_SHARES:
                root = np.linalg.cholesky(single + share * pair + noise * unit)
                half = np.linalg.solve(root, excess)
                likelihood = -0.5 * half @ half - np.log(np.diag(root)).sum()
                if likelihood > best:
                    best, self.pair_share, self._root = likelihood, share, root
                    self._weights = np.linalg.solve(root.T, half)

    def mean(self, flags: Floats) -> Floats:
        """Expected losses ``[k]`` of the masks ``[k, n_layers]``, minus the original's loss."""
        expected: Floats = self._kernel(flags) @ self._weights
        return expected

    def deviation(self, flags: Floats) -> Floats:
        """Standard deviations ``[k]`` of these expectations, positive."""
        known = np.linalg.solve(self._root, self._kernel(flags).T)
        first, second = flags @ self._scales, flags @ self._scales**2
        pairs = self.pair_share * (first**2 - second) / 2
        prior = second + pairs + _COMMON * self._n_pairs(flags) ** 2
        floor = 1e-12 * float(np.mean(self._scales**2))
        deviation: Floats = np.sqrt(np.maximum(prior - (known**2).sum(axis=0), floor))
        return deviation

    def _kernel(self, flags: Floats) -> Floats:
        single, pair = self._kernels(flags, self._flags)
        return single + self.pair_share * pair

    def _kernels(self, left: Floats, right: Floats) -> tuple[Floats, Floats]:
        """The part of the kernel that does not depend on ρ, and the part that ρ multiplies."""
        single = (left * self._scales**2) @ right.T
        both = (left * self._scales) @ right.T
        common = _COMMON * np.outer(self._n_pairs(left), self._n_pairs(right))
        return single + common, (both**2 - single) / 2

    def _n_pairs(self, flags: Floats) -> Floats:
        """``q``: the converted pairs, each weighted by the scale of its interaction."""
        total: Floats = flags @ np.sqrt(self._scales)
        return (total**2 - flags @ self._scales) / 2
