"""One set of d dimensions that stands in for d dimensions of each of several heads.

``aligned`` uses it if any invertible map of a head is free: for values (the output projection takes
the map up) and for keys without RoPE (the queries take it up).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_REGULARISATION = 1e-4


@dataclass(frozen=True, slots=True, eq=False)
class Maps:
    """How a group of g heads becomes one: z' = Σ_s down_s z_s, and then z_s ≈ up_s z'.

    Attributes:
        down: [g, d, d].
        up: [g, d, d].
    """

    down: Tensor
    up: Tensor


class Subspace:
    """Joint, weighted SVD of the states z_s of several heads.

    It minimises Σ_s E (z_s − up_s z')ᵀ C_s (z_s − up_s z') over all maps. With A = C^½ (block
    diagonal) and Y the d leading eigenvectors of A E[zzᵀ] A (z stacked over heads):
    z' = Yᵀ A z, up_s = C_s^-½ Y_s (Eckart and Young, 1936).

    Attributes:
        total: Σ_s E z_sᵀ C_s z_s, over all heads.
    """

    def __init__(self, gram: Tensor, cost: Tensor) -> None:
        """
        Args:
            gram: [n, d, n, d] float64, E[z_s z_tᵀ].
            cost: [n, d, d], C_s; a ten-thousandth of its mean eigenvalue is added to it.
        """
        self._energy = torch.einsum("sasa->s", gram)
        self._root, self._inverse = _square_roots(cost)
        self._weighted = torch.einsum("sab,sbtc,tcd->satd", self._root, gram, self._root)
        self.total = float(torch.einsum("sasa->", self._weighted))

    def residual(self, heads: Sequence[int]) -> float:
        """The least error that one set of dimensions can have for these heads."""
        values: Tensor = torch.linalg.eigvalsh(self._stacked(heads))
        dims = self._root.shape[-1]
        return float(values[:-dims].clamp_min(0).sum())

    def maps(self, heads: Sequence[int]) -> Maps:
        """The maps with the least error; z' has the mean head's energy, which suits 16 bits."""
        values, vectors = torch.linalg.eigh(self._stacked(heads))
        dims, index = self._root.shape[-1], list(heads)
        basis = vectors[:, -dims:].flip(-1)
        basis = basis * basis.gather(0, basis.abs().argmax(0, keepdim=True)).sign()
        basis = basis.reshape(len(index), dims, dims)
        kept = float(values[-dims:].clamp_min(0).sum())
        scale = (float(self._energy[index].mean()) / kept) ** 0.5 if kept > 0 else 1.0
        down = basis.transpose(-1, -2) @ self._root[index] * scale
        return Maps(down, self._inverse[index] @ basis / scale)

    def _stacked(self, heads: Sequence[int]) -> Tensor:
        index = list(heads)
        dims = self._root.shape[-1]
        block = self._weighted[index][:, :, index]
        return block.reshape(len(index) * dims, len(index) * dims)


def _square_roots(cost: Tensor) -> tuple[Tensor, Tensor]:
    """C^½ and C^-½ of every head's cost [n, d, d], regularised so that C^-½ exists."""
    dims = cost.shape[-1]
    level = torch.einsum("saa->s", cost) / dims
    level = level.clamp_min(float(level.max()) * 1e-8)
    level = torch.where(level > 0, level, torch.ones_like(level))
    ridge = _REGULARISATION * level[:, None, None] * torch.eye(dims, dtype=cost.dtype)
    values, vectors = torch.linalg.eigh(cost + ridge)
    # rounding may leave an eigenvalue a little below what the ridge guarantees
    values = values.clamp_min(_REGULARISATION / 2 * level[:, None])
    transposed = vectors.transpose(-1, -2)
    root = vectors * values.sqrt()[:, None, :] @ transposed
    inverse = vectors * values.rsqrt()[:, None, :] @ transposed
    return root, inverse
