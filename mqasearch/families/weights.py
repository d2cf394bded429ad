"""The weights of one attention layer in a form that does not depend on the model family."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from mqasearch.errors import ModelError


@dataclass(frozen=True, slots=True)
class RopeLayout:
    """Which of a head's dimensions rotary position embedding turns, and how they pair up.

    Attributes:
        kind: ``none`` (no dimension turns), ``half`` (pair l is (l, l + rotary_dims/2)) or
            ``interleaved`` (pair l is (2l, 2l + 1)).
        rotary_dims: number of dimensions that turn, always the first ones of a head; 0 for
            ``none``.
    """

    kind: Literal["none", "half", "interleaved"]
    rotary_dims: int

    def __post_init__(self) -> None:
        if (self.kind == "none") != (self.rotary_dims == 0) or self.rotary_dims % 2:
            raise ValueError(f"rope kind {self.kind!r} with {self.rotary_dims} rotary dimensions")

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """(real, imaginary) dimension of every pair, in the order of its frequency."""
        half = self.rotary_dims // 2
        if self.kind == "half":
            return tuple((pair, pair + half) for pair in range(half))
        return tuple((2 * pair, 2 * pair + 1) for pair in range(half))


NO_ROPE = RopeLayout("none", 0)


@dataclass(frozen=True, slots=True)
class AttentionWeights:
    """One attention layer: ``n_q`` query heads, ``n`` KV heads of size ``d``, hidden size ``D``.

    Query head ``h`` reads KV head ``h // (n_q / n)``. A bias is None if the layer does not have it.

    Attributes:
        q: query projection [n_q, d, D].
        k: key projection [n, d, D].
        v: value projection [n, d, D].
        o: output projection [D, n_q, d].
        q_bias: [n_q, d] or None.
        k_bias: [n, d] or None.
        v_bias: [n, d] or None.
        o_bias: [D] or None.
        rope: which dimensions of q and k turn with the position.
        has_qk_norm: whether a norm acts on each head's q and k between projection and RoPE.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor
    rope: RopeLayout
    q_bias: Tensor | None = None
    k_bias: Tensor | None = None
    v_bias: Tensor | None = None
    o_bias: Tensor | None = None
    has_qk_norm: bool = False

    @property
    def n_heads(self) -> int:
        """Number of query heads."""
        return self.q.shape[0]

    @property
    def n_kv_heads(self) -> int:
        """Number of KV heads."""
        return self.k.shape[0]

    @property
    def head_dim(self) -> int:
        """Dimensions of one head."""
        return self.q.shape[1]

    @property
    def hidden_size(self) -> int:
        """Dimensions of the residual stream."""
        return self.q.shape[2]

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that are not None, by the name of their attribute."""
        named = {name: getattr(self, name) for name in TENSORS}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def to(
        self, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> "AttentionWeights":
        """The same layer in this dtype, on this device; unchanged tensors are not copied."""
        moved: dict[str, Any] = {
            name: tensor.to(device=device, dtype=dtype) for name, tensor in self.tensors().items()
        }
        return replace(self, **moved)

    def replicated(self, n_kv_heads: int) -> "AttentionWeights":
        """The same function with every KV head repeated up to ``n_kv_heads`` (merging.md, law 9).

        Raises:
            ValueError: ``n_kv_heads`` is no multiple of the layer's number of KV heads.
        """
        times, left = divmod(n_kv_heads, self.n_kv_heads)
        if left or not times:
            raise ValueError(f"{self.n_kv_heads} KV heads cannot be repeated to {n_kv_heads}")
        if times == 1:
            return self
        repeated: dict[str, Any] = {
            name: tensor.repeat_interleave(times, dim=0)
            for name, tensor in self.tensors().items()
            if name in ("k", "v", "k_bias", "v_bias")
        }
        return replace(self, **repeated)

    def check_finite(self, where: str) -> None:
        """Refuse NaN and infinity, which would silently spoil every merge.

        Args:
            where: name of the layer for the message, as "layer 3".

        Raises:
            ModelError: a value is NaN or infinite; the message names the first such tensor.
        """
        for name, tensor in self.tensors().items():
            if not bool(torch.isfinite(tensor).all()):
                raise ModelError(
                    f"{where}: the attention weight {name!r} holds NaN or infinity; "
                    "the checkpoint is damaged or overflowed its dtype, load another one"
                )


TENSORS = ("q", "k", "v", "o", "q_bias", "k_bias", "v_bias", "o_bias")
"""Names of the tensor attributes of ``AttentionWeights``."""
