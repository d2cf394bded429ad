"""Merged values refitted to the output projection: the half of an alternation that refit is not."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mqasearch.conversion import RIDGE, calibration_batches, run_base
from mqasearch.families import AttentionWeights, Family
from mqasearch.merging import augmented

ITERATIONS = 100
"""The most iterations of conjugate gradients. SmolLM2-135M uses all of them, and its residual is
then about 1e-3."""


class ValueEquations:
    """Sums over tokens that determine one layer's merged values for any W_O.

    Let z_{h,s} be the output of query head h if it reads the values of the original KV head s with
    the merged layer's attention. If the merged values are v' = Σ_s A_s v_s, the merged layer's
    output is Σ_h W_O^h Σ_s A_s z_{h,s}. Memory: a float64 [n_q · n · d, n_q · n · d + D] per layer.
    """

    def __init__(self, original: AttentionWeights) -> None:
        self._original = original.to(device="cpu", dtype=torch.float64)
        self._shape = original.n_heads, original.n_kv_heads * original.head_dim
        self._zz: Tensor | float = 0.0
        self._zy: Tensor | float = 0.0

    def add(self, by_shift: Sequence[Tensor], wanted: Tensor) -> None:
        """Add tokens to the sums.

        Args:
            by_shift: for each j, [tokens, n_q, d], if query head h reads KV head s(h) + j
                (modulo n).
            wanted: [tokens, D], the original output.
        """
        n_heads, n = self._original.n_heads, self._original.n_kv_heads
        own = torch.arange(n_heads) // (n_heads // n)
        z = torch.zeros(len(wanted), n_heads, n, self._original.head_dim, device=wanted.device)
        for shift, heads in enumerate(by_shift):
            z[:, torch.arange(n_heads), (own + shift) % n] = heads.float()
        z = torch.cat([z.flatten(1), z.new_ones(len(z), 1)], dim=1)
        self._zz = self._zz + (z.T @ z).to("cpu", torch.float64)
        self._zy = self._zy + (z.T @ wanted.float()).to("cpu", torch.float64)

    def solved(self, weights: AttentionWeights) -> AttentionWeights:
        """The layer with the values of least error for its W_O, shrunk towards its present ones."""
        original, merged = self._original, weights.to(device="cpu", dtype=torch.float64)
        assert isinstance(self._zz, Tensor)
        assert isinstance(self._zy, Tensor)
        zy = self._zy[:-1]
        if merged.o_bias is not None:
            zy = zy - self._zz[:-1, -1:] * merged.o_bias
        zz = self._zz[:-1, :-1].reshape(*self._shape, *self._shape)
        zy = zy.reshape(*self._shape, -1)
        cost = torch.einsum("Dha,Dkb->hakb", merged.o, merged.o)

        def raised(mix: Tensor) -> Tensor:
            return torch.einsum("hakb,kbhe->ae", cost, torch.einsum("bc,kche->kbhe", mix, zz))

        before = augmented(original.v, original.v_bias).flatten(0, 1)
        present = torch.linalg.lstsq(before.T, augmented(merged.v, merged.v_bias)[0].T).solution.T
        energy = torch.einsum("haka,kchc->", cost, zz) / present.numel()
        shrink = RIDGE * float(energy)
        wanted = torch.einsum("Dha,hcD->ac", merged.o, zy) + shrink * present
        mix = conjugate_gradients(lambda a: raised(a) + shrink * a, wanted, present)
        after = mix @ before
        return replace(
            weights,
            v=after[None, :, :-1].to(weights.v),
            v_bias=None if weights.v_bias is None else after[None, :, -1].to(weights.v_bias),
        )


def value_equations(
    model: PreTrainedModel,
    family: Family,
    merged: Sequence[AttentionWeights],
    text: Sequence[Sequence[int]],
) -> list[ValueEquations]:
    """The equations of every layer, from one pass of the original model.

    After each attention of the pass, that attention is run once more for each KV head.

    Args:
        model, family: the original model and its family.
        merged: every layer with one KV head; only its keys and queries matter.
        text: token ids of the calibration texts.
    """
    attentions = [family.attention(block) for block in family.blocks(model)]
    with ExitStack() as stack:
        taps = []
        for attention, weights in zip(attentions, merged, strict=True):
            taps.append(_ValueTap(family, attention, weights))
            stack.enter_context(taps[-1].listening())
        for batch in calibration_batches(model, text, None):
            for tap in taps:
                tap.real = batch.real
            run_base(model, batch.tokens)
    return [tap.sums for tap in taps]


class _ValueTap:
    """Runs one attention with the merged keys and the original values of each KV head in turn."""

    def __init__(self, family: Family, attention: nn.Module, merged: AttentionWeights) -> None:
        self._family, self._attention = family, attention
        self._originals = family.parameters(attention)
        original = family.read(attention)
        self.sums = ValueEquations(original)
        self.real: Tensor | None = None
        self._seen: tuple[Tensor, Tensor] | None = None
        n, bias = original.n_kv_heads, original.v_bias
        keys = merged.replicated(n)
        turns = [
            replace(
                keys,
                v=original.v.roll(-shift, dims=0),
                v_bias=None if bias is None else bias.roll(-shift, dims=0),
            )
            for shift in range(n)
        ]
        self._turns = [family.stock_parameters(turn, n, self._originals) for turn in turns]
        self._heads = original.n_heads, original.head_dim

    @contextmanager
    def listening(self) -> Iterator[None]:
        def listen(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            self._seen = args[0], output

        def again(module: nn.Module, args: Any, kwargs: Any, _: Any) -> None:
            _, wanted = self._take()
            by_shift = []
            try:
                for turn in self._turns:
                    self._family.install(module, turn)
                    module.forward(*args, **kwargs)  # module() would run this hook again
                    by_shift.append(self._take()[0].reshape(-1, *self._heads))
            finally:
                self._family.install(module, self._originals)
            self.sums.add(by_shift, wanted)

        output = self._family.output_projection(self._attention)
        hooks = [
            output.register_forward_hook(listen),
            self._attention.register_forward_hook(again, with_kwargs=True),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _take(self) -> tuple[Tensor, Tensor]:
        assert self._seen is not None, "the attention never reached its output projection"
        (heads, output), self._seen = self._seen, None
        return heads[self.real], output[self.real]


def conjugate_gradients(
    times: Callable[[Tensor], Tensor], wanted: Tensor, start: Tensor, tolerance: float = 1e-6
) -> Tensor:
    """x with times(x) = wanted, by conjugate gradients (Hestenes and Stiefel, 1952).

    ``times`` is a linear, symmetric, positive map.
    """
    x, left = start, wanted - times(start)
    direction, size = left, float(left.square().sum())
    enough = tolerance**2 * float(wanted.square().sum())
    for _ in range(ITERATIONS):
        if size <= enough:
            break
        image = times(direction)
        step = size / float((direction * image).sum())
        x, left = x + step * direction, left - step * image
        before, size = size, float(left.square().sum())
        direction = left + size / before * direction
    return x
