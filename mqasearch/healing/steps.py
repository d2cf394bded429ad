"""What a healing tells while it runs, and when it has ended."""

from collections.abc import Callable
from dataclasses import dataclass

from mqasearch.heal_recipe import Ending


@dataclass(frozen=True, slots=True)
class Step:
    """A step that is done.

    Attributes:
        step: number of steps done.
        n_steps: at most.
        loss: KL per token on the batch, in nats, before the step.
        held_out: the latest KL per token on held-out text.
        seconds: that the step took.
        seconds_left: at this pace.
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
        steps: of the optimiser that were done.
        best_step: whose weights were kept; 0 = those that it began with.
        n_tokens: seen while training, repetitions counted, padding left out.
        n_text_tokens: different ones, to learn from.
        before, after: KL per token on held-out text, in nats, at the start and of the kept weights.
        ending: why it ended.
        seconds: that the steps took.
    """

    steps: int
    best_step: int
    n_tokens: int
    n_text_tokens: int
    before: float
    after: float
    ending: Ending
    seconds: float
