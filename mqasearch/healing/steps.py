"""What a healing reports while it runs, and at its end."""

from collections.abc import Callable
from dataclasses import dataclass

from mqasearch.heal_recipe import Ending


@dataclass(frozen=True, slots=True)
class Step:
    """Report of a step that is done.

    Attributes:
        step: number of steps done.
        n_steps: greatest number of steps.
        loss: KL per token on the batch, in nats, before the step.
        held_out: the latest KL per token on held-out text.
        seconds: mean time of the steps so far.
        seconds_left: time that the remaining steps take at this pace.
    """

    step: int
    n_steps: int
    loss: float
    held_out: float
    seconds: float
    seconds_left: float


Watch = Callable[[Step], None]


@dataclass(frozen=True, slots=True)
class Facts:
    """How a healing went.

    Attributes:
        steps: number of the optimiser's steps.
        best_step: step whose weights were kept; 0 = the weights at the start.
        n_tokens: number of tokens trained on, with repetitions, without padding.
        n_text_tokens: number of tokens of the training text, without repetitions.
        before, after: KL per token on held-out text, in nats, at the start and of the kept weights.
        ending: why the healing ended.
        seconds: time that the steps took.
    """

    steps: int
    best_step: int
    n_tokens: int
    n_text_tokens: int
    before: float
    after: float
    ending: Ending
    seconds: float
