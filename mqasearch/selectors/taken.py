"""The masks that a selector must not propose again."""

from collections import Counter
from collections.abc import Iterable, Iterator, Set

from mqasearch.mask import LayerMask


class MaskSet(Set[LayerMask]):
    """A set of masks that counts its masks by the number of converted layers."""

    def __init__(self, masks: Iterable[LayerMask] = ()) -> None:
        self._masks: set[LayerMask] = set()
        self._sizes: Counter[int] = Counter()
        self.update(masks)

    def update(self, masks: Iterable[LayerMask]) -> None:
        """Add masks."""
        for mask in masks:
            if mask not in self._masks:
                self._masks.add(mask)
                self._sizes[mask.n_converted] += 1

    def n_of_size(self, n_converted: int) -> int:
        """Number of masks that convert exactly ``n_converted`` layers."""
        return self._sizes[n_converted]

    def __contains__(self, mask: object) -> bool:
        return mask in self._masks

    def __iter__(self) -> Iterator[LayerMask]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)
