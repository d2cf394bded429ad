"""The loop of a healing: steps, and measurements on held-out text that decide when to stop."""

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mqasearch.conversion import (
    TokenBatch,
    TrainedLayer,
    all_installed,
    frozen,
    learning_rate,
    rate_at,
)
from mqasearch.families import AttentionWeights, Family
from mqasearch.forward import ran_out_of_memory
from mqasearch.heal_recipe import Ending, Recipe
from mqasearch.healing.checkpointing import checkpointed
from mqasearch.healing.divergence import divergence, divergence_and_gradient
from mqasearch.healing.steps import Facts, Step, Watch
from mqasearch.healing.teacher import Lesson, lessons
from mqasearch.healing.text import HealingText
from mqasearch.models import ResumableModel

logger = logging.getLogger(__name__)

EVALUATIONS = 12
"""Number of measurements on the held-out text; a state is saved at each of them."""
PATIENCE = 3
"""Number of measurements without a new best that end the healing, once half of the steps are done.
While the learning rate is high, the loss may rise before it falls."""

_BETAS = (0.9, 0.99)
_LARGEST_GRADIENT = 1.0
_FLOAT16_SCALE = 2.0**12


@dataclass
class Course:
    """How far a healing has come: plain numbers, saved with its tensors.

    Attributes:
        step: number of steps done.
        n_tokens: number of tokens trained on so far.
        best_step: step whose weights are the best so far.
        held_out: KL on the held-out text at every measurement, the start first.
        seconds: time that the steps so far took.
    """

    step: int = 0
    n_tokens: int = 0
    best_step: int = 0
    held_out: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def least(self) -> float:
        """The best held-out KL so far."""
        return min(self.held_out)


class Healing:
    """A model in training: ``run`` trains it; ``state`` gives what a later process resumes from.

    Attributes:
        course: how far it has come.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        family: Family,
        merged: Mapping[int, AttentionWeights],
        text: HealingText,
        recipe: Recipe,
        *,
        checkpointing: bool,
    ) -> None:
        """
        Args:
            model: the original, in eval mode; it is unchanged while no method runs.
            family: the model's family.
            merged: converted layer → its weights; not empty.
            text: the text to train on, and the held-out text.
            recipe: the healing's recipe.
            checkpointing: whether to compute activations twice instead of keeping them.
        """
        blocks = family.blocks(model)
        self._model, self._recipe, self._text = model, recipe, text
        self._resumable = ResumableModel(model, blocks)
        self._first = min(merged)
        self._vocabulary = int(model.config.vocab_size)
        self._checkpointed = blocks[self._first :] if checkpointing else ()
        self._scale = _FLOAT16_SCALE if model.dtype == torch.float16 else 1.0
        self._parts = 1
        with frozen(model):
            self._lessons = self._learned(text.training)
            self._held_out = self._learned(text.held_out)
        self._layers = {
            layer: TrainedLayer(family, family.attention(blocks[layer]), weights)
            for layer, weights in merged.items()
        }
        self._masters = {
            f"{layer}.{name}": master
            for layer, each in self._layers.items()
            for name, master in each.masters.items()
        }
        hidden_size = next(iter(merged.values())).hidden_size
        self._rate = learning_rate(recipe.learning_rate, hidden_size)
        self._adam = torch.optim.Adam(
            self._masters.values(), lr=self._rate, betas=_BETAS, fused=True
        )
        self._best = self._values()
        self.course = Course()

    def run(self, watch: Watch | None = None) -> Iterator[None]:
        """Train until the end; yield after every measurement on the held-out text.

        The caller may save a state then. The first measurement comes before the first step, so that
        the start counts as the best state at first.
        """
        n_steps, course = self._recipe.n_steps, self.course
        interval = max(1, n_steps // EVALUATIONS)
        if not course.held_out:
            course.held_out.append(self._error())
            yield
        order = islice(self._text.in_order(self._recipe.seed), course.step, None)
        while self.ending() is None:
            began = time.monotonic()
            loss = self._step(self._lessons[next(order)])
            course.seconds += time.monotonic() - began
            course.step += 1
            if course.step % interval == 0 or course.step == n_steps or not math.isfinite(loss):
                self._look(loss)
                yield
            if watch is not None:
                pace = course.seconds / course.step
                left = pace * (n_steps - course.step)
                watch(Step(course.step, n_steps, loss, course.held_out[-1], pace, left))

    def ending(self) -> Ending | None:
        """Why the healing has ended; None if it has not."""
        seen = self.course.held_out
        if not all(map(math.isfinite, seen)):
            return "diverged"
        if self.course.step >= self._recipe.n_steps:
            return "all steps done"
        is_late = 2 * self.course.step >= self._recipe.n_steps
        if is_late and len(seen) > PATIENCE and min(seen[-PATIENCE:]) >= min(seen[:-PATIENCE]):
            return "held-out text got no better"
        return None

    def healed(self) -> dict[int, AttentionWeights]:
        """Converted layer → its best weights so far, float32, on the CPU."""
        self._set_values(self._best)
        return {layer: each.weights().to(device="cpu") for layer, each in self._layers.items()}

    def facts(self) -> Facts:
        """How the healing went.

        Raises:
            ValueError: it has not ended.
        """
        ending, course = self.ending(), self.course
        if ending is None:
            raise ValueError("the healing has not ended")
        finite = [value for value in course.held_out if math.isfinite(value)]
        before = course.held_out[0]
        return Facts(
            steps=course.step,
            best_step=course.best_step,
            n_tokens=course.n_tokens,
            n_text_tokens=self._text.n_tokens,
            before=before,
            after=min(finite, default=before),
            ending=ending,
            seconds=course.seconds,
        )

    def state(self) -> dict[str, Tensor]:
        """All tensors that a later process needs, together with ``course``, to resume."""
        tensors = {f"best.{name}": tensor for name, tensor in self._best.items()}
        for name, master in self._masters.items():
            tensors[f"master.{name}"] = master.detach()
            for key, value in self._adam.state.get(master, {}).items():
                tensors[f"{key}.{name}"] = value
        return tensors

    def go_on_from(self, course: Course, tensors: Mapping[str, Tensor]) -> None:
        """Resume from the ``course`` and ``state`` of another process."""
        self.course = course
        device = self._model.device
        self._best = {name: tensors[f"best.{name}"].to(device) for name in self._masters}
        self._set_values({name: tensors[f"master.{name}"] for name in self._masters})
        for name, master in self._masters.items():
            if f"step.{name}" in tensors:
                moments = {
                    key: tensors[f"{key}.{name}"].to(device) for key in ("exp_avg", "exp_avg_sq")
                }
                self._adam.state[master] = {"step": tensors[f"step.{name}"], **moments}

    def _learned(self, batches: Sequence[TokenBatch]) -> list[Lesson]:
        return lessons(self._resumable, batches, self._first, self._model.device)

    @contextmanager
    def _converted(self) -> Iterator[None]:
        with frozen(self._model), all_installed(list(self._layers.values())):
            yield

    def _step(self, lesson: Lesson) -> float:
        """Make one step; return the batch's loss before it, or NaN if gradients are not finite."""
        while True:
            try:
                loss = self._gradients(lesson)
                break
            except Exception as error:
                rows = len(lesson.batch.tokens)
                if not ran_out_of_memory(error) or self._parts >= rows:
                    raise
                self._parts = min(2 * self._parts, rows)
            for layer in self._layers.values():
                layer.forget_gradients()
            logger.warning("out of memory: a step's batch is computed in %d parts", self._parts)
        if not self._have_finite_gradients():
            if self._scale == 1:
                return math.nan
            self._scale /= 2
            return self._step(lesson)
        rate = rate_at(self.course.step, self._recipe.n_steps, min(10, self._recipe.n_steps // 10))
        self._adam.param_groups[0]["lr"] = self._rate * rate
        torch.nn.utils.clip_grad_norm_(self._masters.values(), _LARGEST_GRADIENT)
        self._adam.step()
        for layer in self._layers.values():
            layer.write()
        self.course.n_tokens += int(lesson.batch.real.sum())
        return loss

    def _gradients(self, lesson: Lesson) -> float:
        """Set the masters' gradients of the mean divergence over a batch, and return its value."""
        n_tokens = int(lesson.batch.real.sum())
        total = 0.0
        with self._converted(), checkpointed(self._checkpointed):
            for part in self._in_parts(lesson, self._parts):
                hidden = self._behind(part)
                real = part.batch.real
                found, gradient = divergence_and_gradient(
                    self._resumable,
                    part.behind[real],
                    hidden[real],
                    self._vocabulary,
                    self._scale / n_tokens,
                )
                total += found
                whole = torch.zeros_like(hidden)
                whole[real] = gradient
                hidden.backward(whole)  # type: ignore[no-untyped-call]
            for layer in self._layers.values():
                layer.take_gradients(self._scale)
        return total / n_tokens

    def _in_parts(self, lesson: Lesson, n_parts: int) -> Iterator[Lesson]:
        rows = len(lesson.batch.tokens)
        size = -(-rows // n_parts)
        for start in range(0, rows, size):
            yield lesson.part(slice(start, start + size), self._model.device)

    def _behind(self, lesson: Lesson) -> Tensor:
        """States of the converted model after the last block."""
        last = self._resumable.n_layers
        return self._resumable.run(
            lesson.batch.tokens, start=self._first, hidden=lesson.before, wanted=[last]
        )[last]

    def _have_finite_gradients(self) -> bool:
        return all(
            bool(torch.isfinite(master.grad).all())
            for master in self._masters.values()
            if master.grad is not None
        )

    def _look(self, loss: float) -> None:
        """Measure on the held-out text, and keep the weights if they are the best so far."""
        course = self.course
        error = self._error() if math.isfinite(loss) else math.nan
        if error < course.least:  # False for NaN
            course.best_step, self._best = course.step, self._values()
        course.held_out.append(error)

    def _error(self) -> float:
        """KL per token on the held-out text."""
        total, n_tokens = 0.0, 0
        with self._converted(), torch.no_grad():
            for lesson in self._held_out:
                part = lesson.part(slice(None), self._model.device)
                real = part.batch.real
                total += divergence(
                    self._resumable, part.behind[real], self._behind(part)[real], self._vocabulary
                )
                n_tokens += int(real.sum())
        return total / n_tokens

    def _values(self) -> dict[str, Tensor]:
        return {name: master.detach().clone() for name, master in self._masters.items()}

    def _set_values(self, values: Mapping[str, Tensor]) -> None:
        for layer, each in self._layers.items():
            prefix = f"{layer}."
            each.set_values(
                {
                    name.removeprefix(prefix): tensor
                    for name, tensor in values.items()
                    if name.startswith(prefix)
                }
            )
