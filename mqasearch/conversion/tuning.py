"""Local fitting of merged layers: queries, keys, values and outputs, by gradients.

Each layer is fitted to the original layer's output on the calibration text, with the original
layer's inputs (the parallel form). The result does not depend on a mask, so it is computed once and
serves every mask of a search. The loss is |Y' − Y|² over |Y|², Y the attention's output. A sixth of
the texts is held out. The weights after the pass with the least error on these texts are kept, or
the weights at the start if no pass has a smaller error.

The optimiser is torch's Adam (Kingma and Ba, 2015), with masters in float32. What else was tried,
and what each choice is worth, is in ``benchmarks/merges.md``.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mqasearch.conversion.normal_equations import not_finite
from mqasearch.conversion.refit import Progress, calibration_batches
from mqasearch.conversion.text_batches import TokenBatch
from mqasearch.conversion.trained_layer import TrainedLayer, frozen, learning_rate, rate_at
from mqasearch.errors import UserError
from mqasearch.families import AttentionWeights, Family
from mqasearch.models import ResumableModel

PASSES = 12
BATCH_TOKENS = 512
HELD_OUT = 6
"""One text in this many is held out."""

_WARM_STEPS = 5
_RATE = 5e-3
"""Highest learning rate for a hidden size of 576."""
_BETAS = (0.9, 0.99)
_FLOAT16_SCALE = 2.0**10
"""Factor of the loss in float16; without it gradients would be too small for float16."""


@dataclass(frozen=True)
class _Example:
    """One batch as an attention layer sees it.

    Attributes:
        args, keywords: arguments of the attention's forward.
        wanted: [rows, length, D], the original layer's output.
        real: [rows, length] bool, False for padding.
        n_tokens: number of real tokens.
    """

    args: tuple[Any, ...]
    keywords: dict[str, Any]
    wanted: Tensor
    real: Tensor
    n_tokens: int


def tune_layers(
    model: PreTrainedModel,
    family: Family,
    merged: Sequence[AttentionWeights],
    sequences: Sequence[Sequence[int]],
    progress: Progress | None = None,
) -> list[AttentionWeights]:
    """Every merged layer fitted to the original one, each as if it were the only one.

    Memory holds three numbers per token and hidden dimension: the states before the current layer,
    and its attention's input and output.

    Args:
        model: the original; it is unchanged when this returns.
        family: the model's family.
        merged: every layer after merging, layer 0 first.
        sequences: token ids of calibration texts.
        progress: called with (tokens fitted to, tokens in all).

    Returns:
        The layers in float32. No layer's error on the held-out texts is above that of its start in
        ``merged``.

    Raises:
        UserError: fewer than six texts.
        ModelError: NaN or infinity in the original's outputs.
    """
    texts = [text for text in sequences if text]
    if len(texts) < HELD_OUT:
        raise UserError(
            f"tune holds one calibration text in {HELD_OUT} out and the tasks give {len(texts)}: "
            "set documents.calibration_tokens higher, add a task, or give the merge tune: false"
        )
    resumable = ResumableModel(model, family.blocks(model))
    fitted, held_out = (
        _Stream(resumable, list(calibration_batches(model, part, None, BATCH_TOKENS)))
        for part in _split(texts)
    )
    n_tokens = sum(int(batch.real.sum()) for batch in fitted.batches)
    done, total = 0, n_tokens * PASSES * len(merged)
    tuned = []
    with frozen(model):
        for layer, weights in enumerate(merged):
            attention = family.attention(resumable.blocks[layer])
            fit = _Fit(
                TrainedLayer(family, attention, weights),
                attention,
                fitted.through(layer, attention),
                held_out.through(layer, attention),
            )
            for each in range(PASSES):
                fit.run_pass(each)
                done += n_tokens
                if progress is not None:
                    progress(done, total)
            tuned.append(fit.best())
    return tuned


def _split(texts: Sequence[Sequence[int]]) -> tuple[list[Sequence[int]], list[Sequence[int]]]:
    """Texts to fit to, and those that are held out."""
    fitted = [text for index, text in enumerate(texts) if index % HELD_OUT]
    return fitted, list(texts[::HELD_OUT])


class _Stream:
    """Batches on their way through the original model, one layer after the other."""

    def __init__(self, model: ResumableModel, batches: Sequence[TokenBatch]) -> None:
        self.batches = batches
        self._model = model
        self._states: list[Tensor | None] = [None] * len(batches)

    def through(self, layer: int, attention: nn.Module) -> list[_Example]:
        """Run one layer on all batches and record its attention's inputs and outputs."""
        examples: list[_Example] = []

        def note(_: nn.Module, args: Any, keywords: Any, output: Any) -> None:
            wanted = output[0] if isinstance(output, tuple) else output
            if not bool(torch.isfinite(wanted[batch.real]).all()):
                raise not_finite(f"layer {layer}")
            n_tokens = int(batch.real.sum())
            examples.append(_Example(args, dict(keywords), wanted, batch.real, n_tokens))

        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.callback(attention.register_forward_hook(note, with_kwargs=True).remove)
            for index, batch in enumerate(self.batches):
                states = self._model.run(
                    batch.tokens, start=layer, hidden=self._states[index], wanted=[layer + 1]
                )
                self._states[index] = states[layer + 1]
        return examples


class _Fit:
    """One layer being fitted."""

    def __init__(
        self,
        layer: TrainedLayer,
        attention: nn.Module,
        examples: Sequence[_Example],
        held_out: Sequence[_Example],
    ) -> None:
        self._layer = layer
        self._attention = attention
        self._examples = examples
        self._held_out = held_out
        self._size = max(_mean_square(examples), torch.finfo(torch.float32).tiny)
        self._rate = learning_rate(_RATE, layer.weights().hidden_size)
        self._adam = torch.optim.Adam(
            layer.masters.values(), lr=self._rate, betas=_BETAS, fused=True
        )
        self._step = 0
        self._best = layer.values()
        self._least = self._error()

    def run_pass(self, number: int) -> None:
        """Make one pass over the texts, in an order that depends on ``number``."""
        order = torch.randperm(
            len(self._examples), generator=torch.Generator().manual_seed(number)
        ).tolist()
        n_steps = PASSES * len(order)
        with self._layer.installed():
            for index in order:
                self._adam.param_groups[0]["lr"] = self._rate * rate_at(
                    self._step, n_steps, _WARM_STEPS
                )
                self._descend(self._examples[index])
                self._step += 1
        error = self._error()
        if error < self._least:  # False for NaN
            self._least, self._best = error, self._layer.values()

    def best(self) -> AttentionWeights:
        """The weights with the least error on held-out texts."""
        self._layer.set_values(self._best)
        return self._layer.weights()

    def _descend(self, example: _Example) -> None:
        scale = _FLOAT16_SCALE if example.wanted.dtype == torch.float16 else 1.0
        apart = self._apart(example)
        n_numbers = example.n_tokens * apart.shape[-1]
        loss = apart.square().sum() / (n_numbers * self._size)
        (loss * scale).backward()  # type: ignore[no-untyped-call]
        self._layer.take_gradients(scale)
        self._adam.step()
        self._layer.write()

    @torch.no_grad()
    def _error(self) -> float:
        """Sum of squares on the held-out texts."""
        with self._layer.installed():
            return sum(float(self._apart(each).square().sum()) for each in self._held_out)

    def _apart(self, example: _Example) -> Tensor:
        """[rows, length, D] float32: fitted minus original output; 0 for padding."""
        # forward() instead of attention(…), since hooks are for the model's own runs
        output = self._attention.forward(*example.args, **example.keywords)
        found = output[0] if isinstance(output, tuple) else output
        apart: Tensor = (found.float() - example.wanted.float()) * example.real[..., None]
        return apart


def _mean_square(examples: Sequence[_Example]) -> float:
    chosen = [each.wanted[each.real].float() for each in examples]
    return sum(float(each.square().sum()) for each in chosen) / sum(map(Tensor.numel, chosen))
