"""Every other layer."""

from typing import ClassVar, Literal

from mqasearch.errors import UserError
from mqasearch.mask import LayerMask
from mqasearch.search_space import SearchSpace
from mqasearch.selectors.planned import Plan, PlannedSelector, check_one_level


class AlternatingSelector(PlannedSelector):
    """Every ``stride``-th layer from one end: a probe per length, then the mask at the budget.

    When the model runs out of layers the walk starts again one layer further in, so that any
    budget can be met. With the defaults and 28 layers: 27, 25, 23, … then 26, 24, …

    Args:
        space: the masks that may be proposed, of one level, and the budget.
        seed: used once the plan has ended.
        start: the end of the model at which the walk starts.
        stride: layers from one to the next, ≥ 1.

    Raises:
        UserError: ``stride`` below 1, or a space of several levels.
    """

    name: ClassVar[str] = "alternating"
    summary: ClassVar[str] = "every other layer from the end (or the front), one more at a time"

    def __init__(
        self,
        space: SearchSpace,
        seed: int = 0,
        *,
        start: Literal["end", "front"] = "end",
        stride: int = 2,
    ) -> None:
        super().__init__(space, seed)
        if stride < 1:
            raise UserError(f"stride {stride} leads nowhere; choose 1 or more")
        check_one_level(self.name, space)
        walk = range(self.n_layers) if start == "front" else range(self.n_layers)[::-1]
        self.order = [layer for offset in range(stride) for layer in walk[offset::stride]]

    def expected_trials(self) -> int:
        """One for the original and one for each layer of the budget."""
        return 1 + self.space.least

    def plan(self) -> Plan:
        """Request all prefixes of the order together, since none of them depends on a loss."""
        lengths = range(1, self.space.least + 1)
        yield {LayerMask.of(self.order[:n], self.n_layers): 0.0 for n in lengths}
