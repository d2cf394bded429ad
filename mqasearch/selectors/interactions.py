"""A Gaussian process over masks: each layer does harm of its own, and layers interact in pairs."""

import numpy as np
import numpy.typing as npt
from scipy.linalg import solve_triangular

Floats = npt.NDArray[np.float64]
Levels = npt.NDArray[np.int_]
"""``[n, n_layers]`` levels of masks."""

_PAIR_SHARES = (0.3, 0.1, 1.0, 0.03, 0.01)
_NOISE_SHARES = (1e-6, 1e-4, 1e-2)
_COMMON = 0.25


class InteractionModel:
    """Predicts the loss of masks from the losses of others.

    Let ``e_l`` be the harm that layer ``l`` does alone at the level that it has in a mask, and 0 if
    it is not converted. The loss minus the original's is modelled as ``Σ_l a_l + Σ_{l<j} b_lj``
    with ``a_l ~ N(0, e_l²)``, independent for each level, and
    ``b_lj = √(e_l e_j) β_lj``, ``β_lj ~ N(μ, ρ)``, ``μ ~ N(0, τ)``, with the same β at all levels.
    So layers that do much harm also interact much; and in a real model most pairs do more harm
    together than apart, which ``μ`` accounts for. Written as a kernel, the model needs no list of
    pairs:

        k(m, m') = S + ρ/2 · ((Σ √(e_l e'_l))² − Σ e_l e'_l) + τ q(m) q(m')
        S = Σ e_l e'_l over the layers with equal levels,    q(m) = ((Σ √e_l)² − Σ e_l) / 2

    The regression is the usual one (Rasmussen & Williams 2006, algorithm 2.1). ρ and the noise,
    which stands for all effects of three layers or more, are the values with the largest marginal
    likelihood on a small grid. A second-order model of binary masks is the idea of BOCS (Baptista &
    Poloczek 2018); scales by layer and level and the common ``μ`` are ours.

    The expected loss is a quadratic function of the levels, so that it can be computed for very
    many masks: ``Σ_l linear[l, level_l] + Σ_{l<j} pairs[l, j] √(e_l e_j)``.

    Args:
        levels: ``[n, n_layers]`` levels of the scored masks, without the original.
        excess: ``[n]`` losses of these masks minus the original's, finite.
        scales: ``[n_layers, n_levels]`` the ``e_l`` of each level, positive.
    """

    def __init__(self, levels: Levels, excess: Floats, scales: Floats) -> None:
        self._levels = levels
        self._scales = np.column_stack([np.zeros(len(scales)), scales])
        single, pair = self._kernels(levels, levels)
        self._unit = float(np.mean(scales**2))
        unit = self._unit * np.eye(len(levels))
        best = -np.inf
        for share in _PAIR_SHARES:
            for noise in _NOISE_SHARES:
                root = np.linalg.cholesky(single + share * pair + noise * unit)
                half = solve_triangular(root, excess, lower=True)
                likelihood = -0.5 * half @ half - np.log(np.diag(root)).sum()
                if likelihood > best:
                    best, self.pair_share, self._root = likelihood, share, root
                    self._weights = solve_triangular(root.T, half, lower=False)
        self.linear = self._linear()
        """``[n_layers, 1 + n_levels]`` the part of the expected loss that each layer adds alone."""
        self.roots = np.sqrt(self._scales)
        """``[n_layers, 1 + n_levels]`` the ``√e_l`` of each level; 0 at level 0."""
        self.pairs = self._pairs()
        """``[n_layers, n_layers]`` the expected β; 0 on the diagonal."""

    def mean(self, levels: Levels) -> Floats:
        """Expected losses ``[k]`` of the masks ``[k, n_layers]``, minus the original's loss."""
        places = np.arange(levels.shape[1])
        roots = self.roots[places, levels]
        together = np.einsum("kl,lj,kj->k", roots, self.pairs, roots, optimize=True) / 2
        expected: Floats = self.linear[places, levels].sum(axis=1) + together
        return expected

    def deviation(self, levels: Levels) -> Floats:
        """Standard deviations ``[k]`` of these expectations, positive."""
        known = solve_triangular(self._root, self.kernel(levels).T, lower=True)
        harms = self._harms(levels)
        first, second = harms.sum(axis=1), (harms**2).sum(axis=1)
        pairs = self.pair_share * (first**2 - second) / 2
        prior = second + pairs + _COMMON * self._n_pairs(levels) ** 2
        floor = 1e-12 * self._unit
        deviation: Floats = np.sqrt(np.maximum(prior - (known**2).sum(axis=0), floor))
        return deviation

    def kernel(self, levels: Levels) -> Floats:
        """``[k, n]`` the kernel of masks and the scored masks."""
        single, pair = self._kernels(levels, self._levels)
        return single + self.pair_share * pair

    def _harms(self, levels: Levels) -> Floats:
        """``[n, n_layers]`` the ``e_l``."""
        harms: Floats = self._scales[np.arange(levels.shape[1]), levels]
        return harms

    def _kernels(self, left: Levels, right: Levels) -> tuple[Floats, Floats]:
        """The part of the kernel that does not depend on ρ, and the part that ρ multiplies."""
        single = np.zeros((len(left), len(right)))
        for level in range(1, self._scales.shape[1]):
            scale = self._scales[:, level]
            single += ((left == level) * scale**2) @ (right == level).T
        here, there = self._harms(left), self._harms(right)
        both: Floats = np.sqrt(here) @ np.sqrt(there).T
        common = _COMMON * np.outer(self._n_pairs(left), self._n_pairs(right))
        return single + common, (both**2 - here @ there.T) / 2

    def _n_pairs(self, levels: Levels) -> Floats:
        """``q``: the converted pairs, each weighted by the scale of its interaction."""
        harms = self._harms(levels)
        total: Floats = (np.sqrt(harms).sum(axis=1) ** 2 - harms.sum(axis=1)) / 2
        return total

    def _linear(self) -> Floats:
        has = self._levels[:, :, None] == np.arange(self._scales.shape[1])
        linear: Floats = self._scales**2 * np.einsum("nld,n->ld", has, self._weights)
        return linear

    def _pairs(self) -> Floats:
        roots = np.sqrt(self._harms(self._levels))
        pairs: Floats = np.array(self.pair_share * (roots.T * self._weights) @ roots)
        pairs += _COMMON * (self._weights @ self._n_pairs(self._levels))
        np.fill_diagonal(pairs, 0.0)
        return pairs
