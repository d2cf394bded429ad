"""A set of masks is a set, and its counts are counts."""

from hypothesis import given
from hypothesis import strategies as st

from mqasearch.mask import LayerMask
from mqasearch.selectors.taken import MaskSet

masks = st.lists(
    st.lists(st.booleans(), min_size=3, max_size=3).map(tuple).map(LayerMask), max_size=12
)


@given(masks, masks)
def test_it_counts_what_a_set_holds(some: list[LayerMask], more: list[LayerMask]) -> None:
    taken = MaskSet(some)
    taken.update(more)
    assert taken == set(some) | set(more)
    for size in range(5):
        expected = sum(mask.n_converted == size for mask in {*some, *more})
        assert taken.n_of_size(size) == expected
