"""Ridge regression from streamed sums; cross-validation on the text chooses the ridge."""

from dataclasses import replace

import torch
from torch import Tensor

from mqasearch.conversion.text_batches import TokenBatch
from mqasearch.errors import ModelError
from mqasearch.families import AttentionWeights

RIDGES = (1e-1, 1e-2, 1e-3, 1e-4)
"""Candidates for λ, as a share of the mean of the diagonal of ZᵀZ."""

RIDGE = 1e-2
"""The λ that is used if the text is too short to choose one, as the same share."""


class NormalEquations:
    """Sums over tokens that decide a layer's output projection, in float64 on the CPU.

    Texts are split into two folds; the split does not depend on how texts are batched.
    """

    def __init__(self, weights: AttentionWeights) -> None:
        """
        Args:
            weights: the merged layer; the fit is shrunk towards its output projection.
        """
        self._weights = weights
        inputs = weights.n_heads * weights.head_dim + (weights.o_bias is not None)
        self._folds = [_Fold(inputs, len(weights.o)) for _ in range(2)]
        present = weights.o.cpu().double().flatten(1, 2).T
        if weights.o_bias is not None:
            present = torch.cat([present, weights.o_bias.cpu().double()[None]])
        self._present = present

    def add(self, heads: Tensor, wanted: Tensor, batch: TokenBatch) -> None:
        """Add a batch: heads' outputs [rows, length, n_q · d], targets [rows, length, D]."""
        heads, wanted = heads[batch.real].float(), wanted[batch.real].float()
        if self._weights.o_bias is not None:
            heads = torch.cat([heads, heads.new_ones(len(heads), 1)], dim=1)
        odd = batch.parity
        for fold, chosen in zip(self._folds, (odd, ~odd), strict=True):
            fold.add(heads[chosen], wanted[chosen])

    def solved(self, ridge: float | None, where: str) -> AttentionWeights:
        """The layer with the projection of least error; only ``o`` and ``o_bias`` are new.

        Args:
            ridge: as in ``refit_layers``.
            where: the layer's name in messages.

        Raises:
            ModelError: a sum is NaN or infinite.
        """
        one, two = self._folds
        both = one.with_(two)
        if not bool(torch.isfinite(both.zz).all() and torch.isfinite(both.zy).all()):
            raise not_finite(where)
        weights = self._weights
        inputs = weights.n_heads * weights.head_dim
        if not bool(both.zz.diagonal()[:inputs].sum() > 0):
            return weights  # all heads' outputs are zero, so there is nothing to fit
        if ridge is None:
            ridge = self._best_ridge() if one.n_tokens and two.n_tokens else RIDGE
        solution = self._solution(both, ridge)
        output = solution[:inputs].T.reshape(weights.o.shape)
        bias = None if weights.o_bias is None else solution[inputs]
        return replace(weights, o=output, o_bias=bias)

    def _best_ridge(self) -> float:
        """The λ whose fits to one fold have the least error on the other, summed over the folds."""
        one, two = self._folds

        def error(ridge: float) -> float:
            return two.error(self._solution(one, ridge)) + one.error(self._solution(two, ridge))

        return min(RIDGES, key=error)

    def _solution(self, sums: "_Fold", ridge: float) -> Tensor:
        inputs = self._weights.n_heads * self._weights.head_dim
        shrink = torch.zeros(len(sums.zz), dtype=torch.float64)
        shrink[:inputs] = ridge * sums.zz.diagonal()[:inputs].mean()
        wanted = sums.zy + shrink[:, None] * self._present
        solution: Tensor = torch.linalg.solve(sums.zz + shrink.diag(), wanted)
        return solution


class _Fold:
    """ZᵀZ and ZᵀY of some of the tokens."""

    def __init__(self, inputs: int, outputs: int) -> None:
        self.zz = torch.zeros(inputs, inputs, dtype=torch.float64)
        self.zy = torch.zeros(inputs, outputs, dtype=torch.float64)
        self.n_tokens = 0

    def add(self, heads: Tensor, wanted: Tensor) -> None:
        self.zz += (heads.T @ heads).to("cpu", torch.float64)
        self.zy += (heads.T @ wanted).to("cpu", torch.float64)
        self.n_tokens += len(heads)

    def with_(self, other: "_Fold") -> "_Fold":
        both = _Fold(len(self.zz), self.zy.shape[1])
        both.zz, both.zy = self.zz + other.zz, self.zy + other.zy
        both.n_tokens = self.n_tokens + other.n_tokens
        return both

    def error(self, solution: Tensor) -> float:
        """|Y − ZW|² − |Y|²; the term |Y|² does not depend on W."""
        return float((solution * (self.zz @ solution - 2 * self.zy)).sum())


def not_finite(where: str) -> ModelError:
    """The error to raise if calibration overflowed in ``where``."""
    return ModelError(
        f"{where}: attention gives NaN or infinity on the calibration text; "
        "load the model in float32 or bfloat16"
    )
