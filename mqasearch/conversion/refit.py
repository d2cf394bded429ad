"""Ridge regression of the output projection: it fits merged heads to the original's outputs.

Let Z be the heads' outputs of the converted layer and Y the outputs of the original attention on
calibration text. Then W_O'ᵀ = (ZᵀZ + λI)⁻¹ (ZᵀY + λ W_Oᵀ) minimises |Y − Z W'ᵀ|² + λ|W' − W_O|²
(Hoerl and Kennard, 1970, shrunk towards W_O instead of zero). If the projection has a bias, it is
fitted too, without shrinkage. The sums are streamed: no activation is kept.

λ is chosen for each layer by two-fold cross-validation on the calibration text (Stone, 1974). Early
layers need little shrinkage and late ones more, and all of them need more if there is less text.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mqasearch.conversion.normal_equations import NormalEquations
from mqasearch.conversion.text_batches import TokenBatch, token_batches
from mqasearch.errors import UserError
from mqasearch.families import AttentionWeights, Family

TOKENS_PER_INPUT = 4
BATCH_TOKENS = 2048
_LONGEST = 4096

Progress = Callable[[int, int], None]


def refit_layers(
    model: PreTrainedModel,
    family: Family,
    merged: Sequence[AttentionWeights],
    sequences: Sequence[Sequence[int]],
    *,
    ridge: float | None = None,
    progress: Progress | None = None,
) -> list[AttentionWeights]:
    """Every merged layer with its output projection refitted, each as if it were the only one.

    This takes one pass of the original model: after each attention module the converted one runs on
    the same input (the parallel form). The result does not depend on a mask, so it is computed
    once.

    Args:
        model: the original; it is unchanged when this returns.
        family: the model's family.
        merged: every layer after merging, layer 0 first.
        sequences: token ids of calibration texts.
        ridge: λ as a share of the mean of the diagonal of ZᵀZ; None = the best of ``RIDGES`` by
            cross-validation.
        progress: called with (tokens done, tokens in all).

    Raises:
        UserError: fewer than four tokens per input of the output projection.
        ModelError: a sum is NaN or infinite.
    """
    check_tokens(sequences, merged[0], "refit")
    attentions = [family.attention(block) for block in family.blocks(model)]
    taps = [_Tap(family, attention, w) for attention, w in zip(attentions, merged, strict=True)]
    sums = [NormalEquations(weights) for weights in merged]
    with ExitStack() as stack:
        for tap, each in zip(taps, sums, strict=True):
            stack.enter_context(tap.behind_the_original(each.add))
        for batch in calibration_batches(model, sequences, progress):
            for tap in taps:
                tap.batch = batch
            run_base(model, batch.tokens)
    return [each.solved(ridge, f"layer {layer}") for layer, each in enumerate(sums)]


def refit_sequential(
    model: PreTrainedModel,
    family: Family,
    merged: Mapping[int, AttentionWeights],
    sequences: Sequence[Sequence[int]],
    *,
    ridge: float | None = None,
) -> dict[int, AttentionWeights]:
    """The converted layers of one mask, refitted one after the other.

    A layer's heads read the hidden states that the converted and refitted layers before it give.
    Its target is the output of the original attention in the original model. Each layer takes two
    partial passes.

    Args:
        model: the original; it is unchanged when this returns.
        family: the model's family.
        merged: layer → weights after merging; other layers stay as they are.
        sequences, ridge: as in ``refit_layers``.

    Raises:
        UserError, ModelError: as in ``refit_layers``.
    """
    attentions = [family.attention(block) for block in family.blocks(model)]
    originals = {layer: family.parameters(attentions[layer]) for layer in merged}
    refitted: dict[int, AttentionWeights] = {}
    replaced: dict[int, dict[str, nn.Parameter]] = {}

    def install(parameters: Mapping[int, Mapping[str, nn.Parameter]]) -> None:
        for layer, each in parameters.items():
            family.install(attentions[layer], each)

    for layer in sorted(merged):
        weights = merged[layer]
        check_tokens(sequences, weights, "refit")
        attention = attentions[layer]
        n_kv_heads = family.read(attention).n_kv_heads
        converted = family.stock_parameters(weights, n_kv_heads, originals[layer])
        tap, sums = _Tap(family, attention, weights), NormalEquations(weights)
        try:
            for batch in calibration_batches(model, sequences, None):
                install(originals)
                _, wanted = tap.stopping_behind(model, batch.tokens)
                install(replaced)
                family.install(attention, converted)
                heads, _ = tap.stopping_behind(model, batch.tokens)
                sums.add(heads, wanted, batch)
        finally:
            install(originals)
        refitted[layer] = sums.solved(ridge, f"layer {layer}")
        replaced[layer] = family.stock_parameters(refitted[layer], n_kv_heads, originals[layer])
    return refitted


def least_tokens(n_heads: int, head_dim: int) -> int:
    """The least number of calibration tokens for a fit of a layer."""
    return TOKENS_PER_INPUT * n_heads * head_dim


def check_tokens(sequences: Iterable[Sequence[int]], weights: AttentionWeights, fit: str) -> None:
    """Refuse to fit more numbers than the text determines.

    Args:
        sequences: token ids of calibration texts.
        weights: a merged layer's weights.
        fit: the merge's parameter that asks for the fit, for the message.

    Raises:
        UserError: there are too few tokens. The message says how many are needed, and which key
            sets their number.
    """
    have = sum(map(len, sequences))
    need = least_tokens(weights.n_heads, weights.head_dim)
    if have < need:
        raise UserError(
            f"{fit} needs at least {need:,} calibration tokens and the tasks give {have:,}: set "
            f"documents.calibration_tokens to {need} or more, add a task, or give the merge "
            f"{fit}: false"
        )


def calibration_batches(
    model: PreTrainedModel,
    sequences: Sequence[Sequence[int]],
    progress: Progress | None,
    max_tokens: int = BATCH_TOKENS,
) -> Iterator[TokenBatch]:
    """Batches on the model's device; no row is longer than the model's number of positions."""
    longest = min(getattr(model.config, "max_position_embeddings", _LONGEST), _LONGEST)
    total, done = sum(map(len, sequences)), 0
    for batch in token_batches(sequences, max_tokens, longest):
        yield batch.to(model.device)
        done += int(batch.real.sum())
        if progress is not None:
            progress(done, total)


def run_base(model: PreTrainedModel, tokens: Tensor) -> None:
    """Run the model without its head; nothing is returned, hooks read what they need."""
    with torch.no_grad():
        model.base_model(input_ids=tokens, use_cache=False)


Use = Callable[[Tensor, Tensor, TokenBatch], None]


class _Stop(Exception):
    """Ends a run behind the current layer, since no later layer is needed."""


class _Tap:
    """Records the input and the output of one layer's output projection."""

    def __init__(self, family: Family, attention: nn.Module, merged: AttentionWeights) -> None:
        self._family = family
        self._attention = attention
        self._output = family.output_projection(attention)
        self._merged = merged
        self._seen: tuple[Tensor, Tensor] | None = None
        self.batch: TokenBatch | None = None

    @contextmanager
    def behind_the_original(self, use: Use) -> Iterator[None]:
        """After every run of the attention, run the converted one on the same input.

        ``use`` gets the converted heads' outputs, the original's output, and the batch.
        """
        family, attention = self._family, self._attention
        originals = family.parameters(attention)
        n_kv_heads = family.read(attention).n_kv_heads
        converted = family.stock_parameters(self._merged, n_kv_heads, originals)

        def again(module: nn.Module, args: Any, kwargs: Any, _: Any) -> None:
            _, wanted = self._take()
            family.install(module, converted)
            try:
                module.forward(*args, **kwargs)  # not module(), which would call this hook again
            finally:
                family.install(module, originals)
            heads, _ = self._take()
            assert self.batch is not None
            use(heads, wanted, self.batch)

        hook = attention.register_forward_hook(again, with_kwargs=True)
        try:
            with self._listening():
                yield
        finally:
            hook.remove()

    def stopping_behind(self, model: PreTrainedModel, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Run the model up to this layer, and return its heads' outputs and its output."""

        def stop(*_: Any) -> None:
            raise _Stop

        hook = self._attention.register_forward_hook(stop)
        try:
            with self._listening():
                run_base(model, tokens)
        except _Stop:
            return self._take()
        finally:
            hook.remove()
        raise AssertionError("the model never ran the layer")

    @contextmanager
    def _listening(self) -> Iterator[None]:
        def listen(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            self._seen = args[0], output

        hook = self._output.register_forward_hook(listen)
        try:
            yield
        finally:
            hook.remove()

    def _take(self) -> tuple[Tensor, Tensor]:
        assert self._seen is not None, "the attention never reached its output projection"
        seen, self._seen = self._seen, None
        return seen
