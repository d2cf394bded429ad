"""What decides the healed weights, besides the mask, its merge and the text."""

from dataclasses import asdict, dataclass
from typing import Any

from mqasearch.errors import UserError

AUTO_STEPS = 480
"""Of ``auto``: below half a million tokens."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a mask is healed.

    Attributes:
        n_steps: of the optimiser; None = ``auto``: ``AUTO_STEPS``.
        batch_tokens: of a step, padding included.
        learning_rate: of Adam, the highest of the schedule, for a stream of 576 dimensions; scaled
            as ``conversion.trained_layer.learning_rate`` does.
        seed: of the order of the batches.
    """

    n_steps: int | None = None
    batch_tokens: int = 1024
    learning_rate: float = 3e-4
    seed: int = 0

    @property
    def steps(self) -> int:
        """The number of steps, ``auto`` resolved."""
        return AUTO_STEPS if self.n_steps is None else self.n_steps

    @property
    def parameters(self) -> dict[str, Any]:
        """Plain data, from which ``Recipe(**parameters)`` is the same again."""
        return asdict(self)


def recipe_of(steps: int | str) -> Recipe:
    """The recipe for ``auto`` or a number of steps.

    Raises:
        UserError: neither of both.
    """
    if steps == "auto":
        return Recipe()
    text = str(steps)
    if text.isdecimal() and text.isascii() and len(text) < 8:
        return Recipe(n_steps=int(text))
    raise UserError(f"heal {text!r}: give a number of steps, as 100, or auto")
