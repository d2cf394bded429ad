import numpy as np
import pytest
from scipy import stats

from mqasearch.evaluation.statistics import paired_difference, wilcoxon_p


def test_the_interval_is_students_t_on_the_differences() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=60), rng.normal(size=60)
    result = paired_difference(a, b)
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert result.value == pytest.approx((a - b).mean())
    assert result.ci95 == pytest.approx((expected.low, expected.high))
    assert result.n_docs == 60


def test_swapping_the_masks_changes_the_sign_and_nothing_else() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=40), rng.normal(size=40)
    there, back = paired_difference(a, b), paired_difference(b, a)
    assert there.value == -back.value
    assert there.ci95 == pytest.approx(tuple(-end for end in reversed(back.ci95)))
    assert there.p_value == pytest.approx(back.p_value)


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


@pytest.mark.parametrize("values", [[0.0, 1.0, 1.0], [0.3, 0.2, 0.9], [2.0]])
def test_a_mask_does_not_differ_from_itself(values: list[float]) -> None:
    result = paired_difference(values, values)
    assert result.value == 0.0
    assert result.p_value == 1.0


@pytest.mark.parametrize("binary", [True, False])
def test_intervals_cover_and_p_values_are_level(binary: bool) -> None:
    """Of 600 pairs of equally good masks, about 5 % are called different, at most."""
    rng = np.random.default_rng(3)
    covered = rejected = 0
    for _ in range(600):
        a, b = rng.normal(size=(2, 80)) + rng.normal(size=80)
        if binary:
            a, b = (a > 0).astype(float), (b > 0).astype(float)
        result = paired_difference(a, b)
        covered += result.ci95[0] <= 0 <= result.ci95[1]
        rejected += result.p_value < 0.05
    assert 0.93 <= covered / 600 <= 0.975
    assert rejected / 600 <= 0.065


def test_one_document_gives_no_finite_interval() -> None:
    low, high = paired_difference([1.0], [0.5]).ci95
    assert (low, high) == (-np.inf, np.inf)


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot pair"):
        paired_difference([1.0, 2.0], [1.0])


def test_a_one_sided_test_looks_at_one_side() -> None:
    worse = np.linspace(0.1, 1.0, 30)
    assert wilcoxon_p(worse, "greater") < 1e-4 < 0.99 < wilcoxon_p(worse, "less")


@pytest.mark.parametrize("n", [8, 40, 200])
def test_agreeing_on_every_document_leaves_a_difference_possible(n: int) -> None:
    low, high = paired_difference([1.0] * n, [1.0] * n).ci95
    assert low == -high
    assert 0.5 / n < high < 4 / n
