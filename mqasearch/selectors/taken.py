"""The masks that a selector must not propose again."""

from collections import Counter
from collections.abc import Iterable, Iterator, Set

from mqasearch.mask import LayerMask
from mqasearch.search_space import SearchSpace


class MaskSet(Set[LayerMask]):
    """A set of masks that counts its masks by size."""

    def __init__(self, masks: Iterable[LayerMask] = ()) -> None:
        self._masks = set(masks)
        self._sizes: dict[SearchSpace, Counter[int]] = {}

    def n_of_size(self, space: SearchSpace, size: int) -> int:
        """Number of masks whose size in ``space`` is ``size``."""
        if space not in self._sizes:
            self._sizes[space] = Counter(map(space.size, self._masks))
        return self._sizes[space][size]

    def __contains__(self, mask: object) -> bool:
        return mask in self._masks

    def __iter__(self) -> Iterator[LayerMask]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)
