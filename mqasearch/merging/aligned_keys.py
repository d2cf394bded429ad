"""Keys with RoPE, for which one complex number per pair and head is free, and keys with a norm.

RoPE turns pair l of a head by the angle position · θ_l. All θ_l differ, so the only maps that
commute with every rotation are those that turn and scale each pair. Written with k̂_l = k[real] +
i·k[imaginary], such a map multiplies by a complex number c, and the query takes it up:
Re(q̂ conj(c k̂')) = Re(q̂ conj(c) · conj(k̂')).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mqasearch.families import RopeLayout
from mqasearch.merging.aligned_subspace import Maps


def hermitian(gram: Tensor, rope: RopeLayout) -> Tensor:
    """[pairs, n, n] complex: E[k̂_s conj(k̂_t)] of every pair, from E[k_s k_tᵀ] [n, d, n, d]."""
    real, imaginary = (torch.tensor(dims) for dims in zip(*rope.pairs, strict=True))
    same = gram[:, real, :, real] + gram[:, imaginary, :, imaginary]
    crossed = gram[:, imaginary, :, real] - gram[:, real, :, imaginary]
    return torch.complex(same, crossed)


class RotaryKeys:
    """A rank-1 problem per pair: k̂_s ≈ c_s k̂', weighted by the energy of the head's queries.

    It minimises Σ_s ω_s E|k̂_s − c_s k̂'|², by the top eigenvector of Ω^½ H Ω^½ (Eckart and Young).
    With c = 1 this would be the mean, with |c| = 1 Procrustes; it is never worse than either.

    Attributes:
        total: Σ_l Σ_s ω_s,l E|k̂_s,l|² over all heads.
    """

    def __init__(self, gram: Tensor, query_cost: Tensor, rope: RopeLayout) -> None:
        """
        Args:
            gram: [n, d, n, d] float64, E[k_s k_tᵀ].
            query_cost: [n, d, d], Σ E[q qᵀ] over the query heads of each KV head.
            rope: which dimensions pair up.
        """
        self._pairs = rope.pairs
        self._gram = hermitian(gram, rope)
        energy = pair_energy(query_cost, rope) / 2  # half: the phase averages out over positions
        self._root = _positive(energy).sqrt()
        self._weighted = self._root[:, :, None] * self._gram * self._root[:, None, :]
        self.total = float(torch.einsum("pss->", self._weighted).real)

    def residual(self, heads: Sequence[int]) -> float:
        """The least error for these heads: the trace minus λ₁, summed over pairs."""
        values: Tensor = torch.linalg.eigvalsh(_among(self._weighted, heads))
        return float(values[:, :-1].clamp_min(0).sum())

    def maps(self, heads: Sequence[int], dims: int) -> Maps:
        """The maps on the ``dims`` dimensions of a head; zero in dimensions without RoPE.

        Every pair of the merged key has the energy of the mean head, so that 16 bits suffice.
        """
        index = list(heads)
        values, vectors = torch.linalg.eigh(_among(self._weighted, heads))
        top = vectors[:, :, -1]
        largest = top.gather(1, top.abs().argmax(1, keepdim=True))
        top = top * (largest.conj() / largest.abs())  # the phase of an eigenvector is arbitrary
        root = self._root[:, index]
        mean = torch.einsum("pss->p", _among(self._gram, heads)).real / len(index)
        kept = values[:, -1]
        scale = torch.where(kept > 0, (mean / kept.clamp_min(1e-300)).sqrt(), 1.0)
        scale = torch.where(scale > 0, scale, 1.0)[:, None]
        down = top.conj() * root * scale
        up = top / root / scale
        return Maps(self._blocks(down, dims), self._blocks(up, dims))

    def _blocks(self, numbers: Tensor, dims: int) -> Tensor:
        """[pairs, g] complex → [g, dims, dims]: multiplication by these numbers as real maps."""
        blocks = torch.zeros(numbers.shape[1], dims, dims, dtype=torch.float64)
        real, imaginary = (torch.tensor(each) for each in zip(*self._pairs, strict=True))
        blocks[:, real, real] = blocks[:, imaginary, imaginary] = numbers.real.T
        blocks[:, imaginary, real] = numbers.imag.T
        blocks[:, real, imaginary] = -numbers.imag.T
        return blocks


class NormedKeys:
    """Keys with a norm between projection and RoPE: only a sign per pair is free.

    The candidates are the mean of the heads, the mean of the heads with their signs turned towards
    one another, and each single head in place of all. The one with the least error is kept. Since
    the norm removes every head's size, heads are compared at equal size. The norm's own weights are
    not taken into account.

    Attributes:
        total: Σ_s ω_s E|k_s|² over all heads, at equal size.
    """

    def __init__(self, gram: Tensor, query_cost: Tensor, rope: RopeLayout) -> None:
        """The arguments are those of ``RotaryKeys``."""
        dims = gram.shape[1]
        self._planes = [*rope.pairs, *((dim, dim) for dim in range(rope.rotary_dims, dims))]
        size = _positive(torch.einsum("sasa->s", gram) / dims).sqrt()
        self._size = size
        even = gram / (size[:, None, None, None] * size[None, None, :, None])
        self._gram = torch.stack([_plane_gram(even, plane) for plane in self._planes])
        query_size = torch.einsum("saa->s", query_cost)[:, None, None]
        cost = query_cost / _positive(query_size)
        self._cost = torch.stack([_plane_cost(cost, plane) for plane in self._planes])
        self.total = float((self._cost * torch.einsum("pss->ps", self._gram)).sum())

    def residual(self, heads: Sequence[int]) -> float:
        """The least error of the candidates."""
        return self._best(heads)[0]

    def maps(self, heads: Sequence[int], dims: int) -> Maps:
        """The diagonal maps of the best candidate; ``up`` holds signs."""
        index = list(heads)
        _, mix, signs = self._best(heads)
        size = self._size[index]
        kept = torch.einsum("ps,pst,pt->", mix, _among(self._gram, heads), mix) / dims
        scale = float(size.mean()) / max(float(kept), 1e-300) ** 0.5
        return Maps(
            self._diagonal(mix.T / size[:, None] * scale, dims), self._diagonal(signs.T, dims)
        )

    def _best(self, heads: Sequence[int]) -> tuple[float, Tensor, Tensor]:
        """Error, mix of the heads at equal size [planes, g], and signs [planes, g]."""
        gram = _among(self._gram, heads)
        ones = torch.ones(gram.shape[:2], dtype=torch.float64)
        towards = torch.linalg.eigh(gram).eigenvectors[:, :, -1]
        signs = torch.where(towards * towards.sum(-1, keepdim=True) < 0, -1.0, 1.0).double()
        candidates = [(self._size[list(heads)] * ones, ones), (ones, ones), (signs, signs)]
        for head in range(len(heads)):
            alone = torch.zeros_like(ones)
            alone[:, head] = 1
            like = torch.where(gram[:, :, head] < 0, -1.0, 1.0).double()
            candidates.append((alone, like))
        rated = [(self._error(gram, heads, mix, signs), mix, signs) for mix, signs in candidates]
        return min(rated, key=lambda row: row[0])

    def _error(self, gram: Tensor, heads: Sequence[int], mix: Tensor, signs: Tensor) -> float:
        cost = self._cost[:, list(heads)]
        dims = sum(1 if real == imaginary else 2 for real, imaginary in self._planes)
        energy = torch.einsum("ps,pst,pt->p", mix, gram, mix)
        size = float(energy.sum() / dims) ** 0.5
        if size == 0:
            return float("inf")
        crossed = torch.einsum("pst,pt->ps", gram, mix) * signs / size
        own = torch.einsum("pss->ps", gram)
        return float((cost * (own - 2 * crossed + energy[:, None] / size**2)).sum())

    def _diagonal(self, numbers: Tensor, dims: int) -> Tensor:
        """[g, planes] → [g, dims, dims]."""
        blocks = torch.zeros(len(numbers), dims, dims, dtype=torch.float64)
        for number, plane in zip(numbers.T, self._planes, strict=True):
            for dim in plane:
                blocks[:, dim, dim] = number
        return blocks


def pair_energy(cost: Tensor, rope: RopeLayout) -> Tensor:
    """[pairs, n]: E|q̂|² of every pair, summed over the query heads of each KV head."""
    real, imaginary = (torch.tensor(dims) for dims in zip(*rope.pairs, strict=True))
    return (cost[:, real, real] + cost[:, imaginary, imaginary]).T


def _plane_gram(gram: Tensor, plane: tuple[int, int]) -> Tensor:
    real, imaginary = plane
    own = gram[:, real, :, real]
    return own if real == imaginary else own + gram[:, imaginary, :, imaginary]


def _plane_cost(cost: Tensor, plane: tuple[int, int]) -> Tensor:
    return sum((cost[:, dim, dim] for dim in plane), torch.zeros(len(cost)).double()) / 2


def _among(gram: Tensor, heads: Sequence[int]) -> Tensor:
    """The rows and columns of these heads: [pairs, n, n] → [pairs, g, g]."""
    index = list(heads)
    return gram[:, index][:, :, index]


def _positive(numbers: Tensor) -> Tensor:
    """The numbers raised to a small positive floor, so that dividing by them is safe.

    Without the floor, a pair that no query looks at would lead to a division by zero.
    """
    floor = float(numbers.max()) * 1e-8
    return numbers.clamp_min(floor if floor > 0 else 1.0)
