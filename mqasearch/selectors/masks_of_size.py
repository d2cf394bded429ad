"""All masks of one size: their number, a random one, and the list of them.

Nothing is listed in order to count or to draw: the masks are the paths of a small graph, whose
nodes are what the layers so far save and the shortest step that one of them could go back.
"""

from collections.abc import Iterator, Mapping, Set
from functools import lru_cache
from itertools import accumulate

import numpy as np

from mqasearch.mask import LayerMask
from mqasearch.search_space import SearchSpace

Level = tuple[int, int]
"""(layer, level) of one converted layer."""

NOTHING: frozenset[Level] = frozenset()

_State = tuple[int, int]
"""(saved so far, shortest step back)."""


class MasksOfSize:
    """The masks of one size without some levels.

    Example:
        >>> masks = MasksOfSize(SearchSpace(n_layers=4, least=2), 2)
        >>> masks.n, [str(mask) for mask in masks][:3]
        (6, ['1100', '1010', '1001'])

    Args:
        space: the search space.
        size: as ``space.size`` gives it; 0 is the original's.
        without: levels that no layer has.
    """

    def __init__(self, space: SearchSpace, size: int, without: Set[Level] = NOTHING) -> None:
        self._space, self._size = space, size
        self._levels = [
            [level for level in range(space.n_levels, 0, -1) if (layer, level) not in without]
            for layer in range(space.n_layers)
        ]
        self._start = (0, max(space.steps))
        self._counts = self._counted()
        self.n = self._counts[0].get(self._start, 0)
        """The number of masks."""

    def draw(self, rng: np.random.Generator) -> LayerMask:
        """One of the masks, each equally likely; there must be one."""
        levels, state = [], self._start
        for layer in range(self._space.n_layers):
            after = self._after(layer, state).items()
            counts = [self._counts[layer + 1].get(following, 0) for _, following in after]
            place = rng.random() * sum(counts)
            chosen = next(
                (n for n, below in enumerate(accumulate(counts)) if place < below),
                max(n for n, count in enumerate(counts) if count),  # rounding, very rarely
            )
            level, state = [*after][chosen]
            levels.append(level)
        return LayerMask(tuple(levels))

    def __iter__(self) -> Iterator[LayerMask]:
        """All masks; those that convert the first layers far come first."""
        return map(LayerMask, self._paths(0, self._start)) if self.n else iter(())

    def _paths(self, layer: int, state: _State) -> Iterator[tuple[int, ...]]:
        if layer == self._space.n_layers:
            yield ()
            return
        for level, following in self._after(layer, state).items():
            if self._counts[layer + 1].get(following):
                for rest in self._paths(layer + 1, following):
                    yield (level, *rest)

    def _after(self, layer: int, state: _State) -> Mapping[int, _State]:
        """Level of the layer → the state after it."""
        saved, step = state
        space = self._space
        after = {
            level: (saved + space.savings[level - 1], min(step, space.steps[level - 1]))
            for level in self._levels[layer]
        }
        return {**after, 0: state}

    def _is_of_size(self, state: _State) -> bool:
        saved, step = state
        if self._size == self._space.least:
            return saved >= self._size > saved - step
        return saved == self._size

    def _counted(self) -> list[dict[_State, int]]:
        """For each layer: state before it → number of masks of the size that go on from there."""
        reached: list[set[_State]] = [{self._start}]
        for layer in range(self._space.n_layers):
            found = {s for state in reached[-1] for s in self._after(layer, state).values()}
            highest = self._size + max(self._space.steps)
            reached.append({state for state in found if state[0] < highest})
        counts = [{state: 1 for state in reached[-1] if self._is_of_size(state)}]
        for layer in range(self._space.n_layers - 1, -1, -1):
            before = {
                state: sum(counts[0].get(s, 0) for s in self._after(layer, state).values())
                for state in reached[layer]
            }
            counts.insert(0, {state: n for state, n in before.items() if n})
        return counts


@lru_cache(maxsize=64)
def masks_of_size(
    space: SearchSpace, size: int, without: frozenset[Level] = NOTHING
) -> MasksOfSize:
    """A :class:`MasksOfSize`; the latest ones are kept, because making one takes a while."""
    return MasksOfSize(space, size, without)
