"""What decides the healed weights besides the mask, its merge and the text; how healing may end."""

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from mqasearch.errors import UserError

Ending = Literal["all steps done", "held-out text got no better", "diverged"]

ENDINGS = get_args(Ending)
"""How a healing may end; a stored result names its ending by its place here."""

DEVICES = ("cpu", "cuda", "mps")
"""Devices of a healing; a stored result names its device by its place here."""

AUTO_STEPS = 480
"""Number of steps for ``auto``: they see less than half a million tokens."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a mask is healed.

    Attributes:
        n_steps: largest number of steps of the optimiser.
        batch_tokens: tokens of a step, padding included.
        learning_rate: Adam's learning rate, the highest of the schedule, for a residual stream of
            576 dimensions; ``conversion.trained_layer.learning_rate`` scales it for others.
        seed: seed of the order of the batches.
    """

    n_steps: int = AUTO_STEPS
    batch_tokens: int = 1024
    learning_rate: float = 3e-4
    seed: int = 0

    @property
    def parameters(self) -> dict[str, Any]:
        """The recipe as plain data; ``Recipe(**parameters)`` gives an equal recipe."""
        return asdict(self)


MOST_TEXT_TOKENS = 2**18
"""Largest number of different tokens that a healing takes by default."""


def most_text_tokens(recipe: Recipe) -> int:
    """Different tokens to heal on: those of all steps plus a held-out sixth, up to a limit."""
    return max(1, min(recipe.n_steps * recipe.batch_tokens * 6 // 5, MOST_TEXT_TOKENS))


def recipe_of(steps: int | str) -> Recipe:
    """The recipe for ``auto`` or a number of steps.

    Raises:
        UserError: ``steps`` is neither.
    """
    if steps == "auto":
        return Recipe()
    text = str(steps)
    if text.isdecimal() and text.isascii() and len(text) < 8:
        return Recipe(n_steps=int(text))
    raise UserError(f"heal {text!r}: give a number of steps, as 100, or auto")
