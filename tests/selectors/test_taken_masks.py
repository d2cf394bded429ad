"""A set of masks is a set, and its counts are counts."""

from hypothesis import given
from hypothesis import strategies as st

from mqasearch.mask import LayerMask
from mqasearch.search_space import SearchSpace
from mqasearch.selectors.taken import MaskSet

SEVERAL = SearchSpace(3, 5, savings=(2, 3), choices=(4, 2, 1))
masks = st.lists(
    st.lists(st.integers(0, 2), min_size=3, max_size=3).map(tuple).map(LayerMask), max_size=12
)


@given(masks)
def test_it_counts_what_a_set_holds(some: list[LayerMask]) -> None:
    taken = MaskSet(some)
    assert taken == set(some)
    for size in range(SEVERAL.most + 1):
        expected = sum(SEVERAL.size(mask) == size for mask in {*some})
        assert taken.n_of_size(SEVERAL, size) == expected
