"""Batches shrink while memory is short and grow again, without flapping."""

from itertools import pairwise

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from mqasearch.forward.batch_size import FIRST_WAIT, BatchSize
from mqasearch.forward.memory import ran_out_of_memory

Limits = list[int]


def run(size: BatchSize, limit: int) -> int:
    """One run, repeated until it fits into ``limit`` tokens; the number of failures."""
    size.grow()
    n_failures = 0
    while size.tokens > limit:
        n_failures += 1
        if not size.shrink():
            return n_failures
    size.ran()
    return n_failures


@given(most=st.integers(1, 5000), limits=st.lists(st.integers(0, 5000), max_size=200))
def test_the_size_stays_between_one_and_the_first(most: int, limits: Limits) -> None:
    size = BatchSize(most)
    for limit in limits:
        run(size, limit)
        assert 1 <= size.tokens <= most


@given(most=st.integers(1, 5000), limits=st.lists(st.integers(0, 5000), max_size=200))
@example(most=4, limits=[2, 2, 2, 2, 4, 0])  # a growth holds once, then no size helps
def test_it_comes_back_once_nothing_else_takes_memory(most: int, limits: Limits) -> None:
    size = BatchSize(most)
    for limit in limits:
        run(size, limit)
    for _ in range(size.wait + (FIRST_WAIT + size.wait) * most.bit_length()):
        run(size, most)
    assert size.tokens == most
    assert size.wait == FIRST_WAIT


@given(most=st.integers(2, 5000), data=st.data())
def test_a_limit_that_stays_is_met_ever_more_rarely(most: int, data: st.DataObject) -> None:
    limit = data.draw(st.integers(1, most - 1))
    size = BatchSize(most)
    run(size, limit)
    failed = [number for number in range(300) if run(size, limit)]
    gaps = [later - earlier for earlier, later in pairwise(failed)]
    assert all(later == 2 * earlier for earlier, later in pairwise(gaps))
    assert len(failed) > 2


def test_it_does_not_grow_before_enough_runs_have_succeeded() -> None:
    size = BatchSize(64)
    assert size.shrink()
    for _ in range(FIRST_WAIT):
        assert not size.grow()
        size.ran()
    assert size.grow()
    assert size.tokens == size.most


def test_if_no_size_helps_the_next_run_begins_with_the_last_that_did() -> None:
    size = BatchSize(64)
    run(size, 20)
    assert size.tokens == 16
    run(size, 0)
    assert size.tokens == 16


@pytest.mark.parametrize(
    ("error", "is_about_memory"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("whatever it says"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("shapes do not match"), False),
        (RuntimeError(), False),
        (ValueError("CUDA out of memory."), False),
    ],
)
def test_errors_about_memory_are_known(error: Exception, is_about_memory: bool) -> None:
    assert ran_out_of_memory(error) is is_about_memory
