"""A run of layers at the end of the model."""

import math
from typing import ClassVar

from mqasearch.errors import UserError
from mqasearch.mask import LayerMask
from mqasearch.search_space import SearchSpace
from mqasearch.selectors.planned import Plan, PlannedSelector, check_one_level


class ConsecutiveSelector(PlannedSelector):
    """The last layers: the run at the budget first, then the longest run that does little harm.

    A binary search on the length finds a run whose loss exceeds the original model's by at most
    ``tolerance`` while that of the next longer run exceeds it by more. This is the longest such run
    if losses grow with the length. If the run at the budget is already within the tolerance,
    nothing is searched.

    Args:
        space: the masks that may be proposed, of one level, and the budget, which is the longest
            run considered.
        seed: used once the plan has ended.
        tolerance: loss that is accepted, in the unit of the study's objective (bits per byte,
            accuracy …), ≥ 0.

    Raises:
        UserError: a negative or infinite tolerance, or a space of several levels.
    """

    name: ClassVar[str] = "consecutive"
    summary: ClassVar[str] = "the last layers in one run, then the longest run within a tolerance"

    def __init__(self, space: SearchSpace, seed: int = 0, *, tolerance: float = 0.05) -> None:
        super().__init__(space, seed)
        check_one_level(self.name, space)
        if not 0 <= tolerance < math.inf:
            raise UserError(f"tolerance {tolerance} is not a finite number of at least 0")
        self.tolerance = tolerance

    def expected_trials(self) -> int:
        """One for the original, one for the run at the budget, and the steps of a binary search."""
        return 2 + self.space.least.bit_length()

    def plan(self) -> Plan:
        """Request the run at the budget and the original together, then one length at a time."""
        original, longest = self._run(0), self._run(self.space.least)
        losses = yield {longest: math.inf, original: 0.0}
        allowed = losses[original] + self.tolerance
        good, bad = 0, self.space.least
        if losses[longest] <= allowed:
            return
        while bad - good > 1:
            length = (good + bad) // 2
            run = self._run(length)
            losses = yield {run: math.inf}
            good, bad = (length, bad) if losses[run] <= allowed else (good, length)

    def _run(self, length: int) -> LayerMask:
        return LayerMask.of(range(self.n_layers - length, self.n_layers), self.n_layers)
