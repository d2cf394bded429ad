import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats

from mqasearch.statistics.paired import holm, paired_difference

FINITE = st.floats(-1e6, 1e6)
PAIRS = st.lists(st.tuples(FINITE, FINITE), min_size=1, max_size=40)
BITS = st.lists(st.tuples(st.sampled_from((0.0, 1.0)), st.sampled_from((0.0, 1.0))), min_size=1)


@given(PAIRS | BITS)
@example([(0.3, 0.2)] * 5)
@example([(1e-200, 0.0), (3e-200, 0.0)])
@example([(0.5, 0.5)] * 3)
@example([(1.0, 0.0)] * 5)
@example([(1.0, 0.0)] * 6)
def test_the_test_rejects_exactly_when_zero_is_outside_the_interval(
    pairs: list[tuple[float, float]],
) -> None:
    a, b = zip(*pairs, strict=True)
    result = paired_difference(a, b)
    low, high = result.ci95
    assert (result.p_value < 0.05) == (not low <= 0 <= high)
    assert low <= result.ci90[0] <= result.ci90[1] <= high
    assert low <= result.value <= high
    assert 0 <= result.p_value <= 1


@given(PAIRS | BITS)
def test_swapping_the_masks_changes_the_sign_and_nothing_else(
    pairs: list[tuple[float, float]],
) -> None:
    a, b = zip(*pairs, strict=True)
    there, back = paired_difference(a, b), paired_difference(b, a)
    assert there.value == -back.value
    for one, other in ((there.ci95, back.ci95), (there.ci90, back.ci90)):
        assert one == pytest.approx(tuple(-end for end in reversed(other)))
    assert (there.p_value, there.stderr) == pytest.approx((back.p_value, back.stderr))


def test_means_are_compared_by_students_t_on_the_differences() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=60), rng.normal(size=60)
    result, expected = paired_difference(a, b), stats.ttest_rel(a, b)
    assert result.value == pytest.approx((a - b).mean())
    assert result.stderr == pytest.approx(stats.sem(a - b))
    assert result.p_value == pytest.approx(expected.pvalue)
    for level, found in ((0.95, result.ci95), (0.90, result.ci90)):
        assert found == pytest.approx(tuple(expected.confidence_interval(level)))
    assert result.n_docs == 60


def test_the_mean_is_what_counts_not_the_number_of_documents_that_are_better() -> None:
    """The rank test calls this mask worse at p = .007; its mean is lower."""
    result = paired_difference([0.05] * 80 + [-0.3] * 20, [0.0] * 100)
    assert result.value == pytest.approx(-0.02)
    assert result.p_value > 0.1


def test_a_difference_is_found_where_the_documents_vary_more_than_the_masks() -> None:
    rng = np.random.default_rng(2)
    difficulty = rng.normal(scale=5.0, size=100)
    result = paired_difference(difficulty + 0.1, difficulty + rng.normal(scale=0.05, size=100))
    assert result.p_value < 1e-6
    assert result.ci95[0] > 0


def test_accuracy_takes_mcnemars_exact_test() -> None:
    a = [1.0] * 10 + [0.0] * 2 + [1.0] * 20
    b = [0.0] * 10 + [1.0] * 2 + [1.0] * 20
    assert paired_difference(a, b).p_value == pytest.approx(stats.binomtest(10, 12).pvalue)


@pytest.mark.parametrize(("more", "n"), [(0, 30), (4, 30), (30, 30)])
def test_where_only_one_mask_is_ever_ahead_the_limit_is_that_of_one_rate(more: int, n: int) -> None:
    a = [1.0] * more + [0.0] * (n - more)
    exact = stats.binomtest(more, n).proportion_ci(0.95)
    assert paired_difference(a, [0.0] * n).ci95[1] == pytest.approx(exact.high)


@pytest.mark.parametrize(("more", "fewer", "n"), [(7, 3, 40), (2, 30, 300), (1, 9, 20)])
def test_the_interval_of_accuracies_is_the_melded_one(more: int, fewer: int, n: int) -> None:
    """Drawn rather than integrated."""
    rng = np.random.default_rng(4)
    a = np.repeat([1.0, 0.0, 1.0], (more, fewer, n - more - fewer))
    b = np.repeat([0.0, 1.0, 1.0], (more, fewer, n - more - fewer))
    share = rng.beta(more + 1, fewer, 400_000)
    most = rng.beta(more + fewer + 1, n - more - fewer, 400_000)
    least = rng.beta(more + fewer, n - more - fewer + 1, 400_000)
    drawn = np.where(share > 0.5, most, least) * (2 * share - 1)
    result = paired_difference(a, b)
    assert result.ci95[1] == pytest.approx(np.quantile(drawn, 0.975), abs=0.003)
    assert result.ci90[1] == pytest.approx(np.quantile(drawn, 0.95), abs=0.003)


@pytest.mark.parametrize("values", [[0.0, 1.0, 1.0], [0.3, 0.2, 0.9], [2.0]])
def test_a_mask_does_not_differ_from_itself(values: list[float]) -> None:
    result = paired_difference(values, values)
    assert result.value == 0.0
    assert result.p_value == 1.0


@pytest.mark.parametrize("binary", [True, False])
def test_intervals_cover(binary: bool) -> None:
    """Of 600 pairs of equally good masks about 5 % are called different; of accuracies fewer."""
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(600):
        a, b = rng.normal(size=(2, 80)) + rng.normal(size=80)
        if binary:
            a, b = (a > 0).astype(float), (b > 0).astype(float)
        low, high = paired_difference(a, b).ci95
        covered += low <= 0 <= high
    assert 0.93 <= covered / 600 <= (1.0 if binary else 0.97)


def test_one_document_gives_no_finite_interval() -> None:
    result = paired_difference([1.0], [0.5])
    assert result.ci95 == (-math.inf, math.inf)
    assert result.stderr == math.inf


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot pair"):
        paired_difference([1.0, 2.0], [1.0])


def test_holm_keeps_the_chance_of_any_false_claim() -> None:
    rng = np.random.default_rng(5)
    claims = [min(holm(rng.uniform(size=4).tolist())) < 0.05 for _ in range(4000)]
    assert np.mean(claims) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 4000)


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_lies_between_no_correction_and_bonferronis(p_values: list[float]) -> None:
    corrected = holm(p_values)
    bonferroni = [min(1.0, len(p_values) * p) for p in p_values]
    assert all(p <= h <= b for p, h, b in zip(p_values, corrected, bonferroni, strict=True))
    assert sorted(range(len(p_values)), key=lambda i: (p_values[i], corrected[i])) == sorted(
        range(len(p_values)), key=lambda i: (corrected[i], p_values[i])
    )
