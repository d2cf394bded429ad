"""Non-inferiority: the level at the margin, the power, and what is shown is what is decided."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mqasearch.statistics.noninferiority import (
    NonInferiority,
    documents_needed,
    first_in_order,
    t_power,
)
from mqasearch.statistics.paired import paired_difference
from mqasearch.statistics.proportions import difference_limit, least_documents


def against(loss: np.ndarray, margin: float) -> NonInferiority:
    found = paired_difference(loss, np.zeros_like(loss))
    return NonInferiority(found.value, found.ci90, found.stderr, found.n_docs, margin)


def accuracy(more: int, fewer: int, n: int, margin: float) -> NonInferiority:
    """``more`` documents that only the original got right, ``fewer`` that only the mask did."""
    mask, original = np.zeros(n), np.zeros(n)
    original[:more], mask[more : more + fewer] = 1, 1
    found = paired_difference(original, mask)
    return NonInferiority(found.value, found.ci90, found.stderr, n, margin)


def test_a_mean_at_the_margin_is_called_within_it_in_one_of_twenty_cases() -> None:
    rng = np.random.default_rng(0)
    shown = sum(against(rng.normal(0.1, 0.5, size=30), 0.1).shown for _ in range(2000))
    assert abs(shown / 2000 - 0.05) < 3 * math.sqrt(0.05 * 0.95 / 2000)


@pytest.mark.parametrize("n", [12, 25])
@pytest.mark.parametrize("margin", [0.05, 0.2])
def test_an_accuracy_at_the_margin_is_rarely_called_within_it_however_often_answers_change(
    n: int, margin: float
) -> None:
    """Not simulated: the sum over every outcome, for a range of the rates that are not tested."""
    limits = {
        (more, fewer): difference_limit(more, fewer, n, 0.05)
        for more in range(n + 1)
        for fewer in range(n + 1 - more)
    }
    within = [outcome for outcome, limit in limits.items() if limit < margin]
    for fewer_rate in np.linspace(0.0, 0.999 * (1 - margin) / 2, 9):
        rates = [fewer_rate + margin, fewer_rate, max(0.0, 1 - 2 * fewer_rate - margin)]
        table = stats.multinomial(n, rates)
        wrong = sum(table.pmf([more, fewer, n - more - fewer]) for more, fewer in within)
        assert wrong <= 0.05


@pytest.mark.parametrize("effect", [0.1, 0.4, 2.0])
def test_the_number_of_documents_is_the_smallest_whose_power_is_enough(effect: float) -> None:
    n = documents_needed(effect, 1.0)
    assert n is not None
    assert t_power(effect, 1.0, n) >= 0.8
    assert n == 2 or t_power(effect, 1.0, n - 1) < 0.8


def test_that_many_documents_show_the_margin_four_times_of_five() -> None:
    rng = np.random.default_rng(1)
    n = documents_needed(0.1 - 0.02, 0.3)
    assert n is not None
    shown = sum(against(rng.normal(0.02, 0.3, size=n), 0.1).shown for _ in range(2000))
    assert shown / 2000 == pytest.approx(0.8, abs=3 * math.sqrt(0.16 / 2000))


@pytest.mark.long
@pytest.mark.parametrize(("more", "fewer", "n", "margin"), [(12, 8, 400, 0.03), (2, 0, 100, 0.05)])
def test_so_do_those_for_an_accuracy(more: int, fewer: int, n: int, margin: float) -> None:
    rng = np.random.default_rng(2)
    needed = accuracy(more, fewer, n, margin).documents_needed
    assert needed is not None
    rates = [more / n, fewer / n, 1 - (more + fewer) / n]
    outcomes = rng.multinomial(needed, rates, size=1000).tolist()
    shown = sum(accuracy(gone, new, needed, margin).shown for gone, new, _ in outcomes)
    assert shown / 1000 == pytest.approx(0.8, abs=0.06)


def test_no_number_of_documents_shows_a_margin_that_the_loss_exceeds() -> None:
    assert accuracy(12, 8, 400, 0.01).documents_needed is None
    assert documents_needed(1e-9, 1.0) is None


@given(st.floats(0.0005, 0.9))
def test_the_fewest_documents_are_those_on_which_agreement_shows_the_margin(margin: float) -> None:
    n = least_documents(margin)
    assert accuracy(0, 0, n, margin).shown
    assert n == 1 or not accuracy(0, 0, n - 1, margin).shown
    if n > 2:
        assert accuracy(0, 0, n - 1, margin).documents_needed == n


@given(
    st.lists(st.floats(-1, 1), min_size=2, max_size=30),
    st.floats(0.001, 1),
)
def test_the_margin_is_shown_exactly_when_it_is_above_the_interval(
    losses: list[float], margin: float
) -> None:
    found = against(np.array(losses), margin)
    assert found.shown == (found.ci90[0] <= found.ci90[1] < margin)
    assert found.ci90[0] <= found.loss <= found.ci90[1]


def test_a_fixed_order_stops_at_the_first_that_is_not_shown() -> None:
    assert first_in_order([True, True, False, True]) == 2
    assert first_in_order([]) == 0
    assert first_in_order([False, True]) == 0
