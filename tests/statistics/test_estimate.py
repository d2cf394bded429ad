"""Values with their standard errors: as text, and averaged."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqasearch.statistics.estimate import Estimate, weighted_mean

ERRORS = st.floats(1e-5, 1e5)


@given(st.floats(-1e6, 1e6), ERRORS)
def test_value_and_error_have_the_same_decimals_and_the_error_two_digits(
    value: float, stderr: float
) -> None:
    match = re.fullmatch(r"(-?\d+(?:\.\d+)?) ± (\d+(?:\.\d+)?)", str(Estimate(value, stderr)))
    assert match is not None
    shown, error = match.groups()
    assert len(shown.partition(".")[2]) == len(error.partition(".")[2])
    assert float(error) == pytest.approx(stderr, rel=0.05)
    assert float(shown) == pytest.approx(value, abs=0.051 * stderr)
    digits = error.replace(".", "").lstrip("0")
    assert len(digits) == 2 or (stderr >= 99.5 and "." not in error)


@pytest.mark.parametrize(
    ("value", "stderr", "text"),
    [
        (0.10534, 0.00421, "0.1053 ± 0.0042"),
        (0.412, 0.0996, "0.41 ± 0.10"),
        (31234.4, 512.3, "31234 ± 512"),
        (0.105344, None, "0.1053"),
        (0.0, 0.0, "0.0000 ± 0.0000"),
        (0.12, 1e-12, "0.120000 ± 0.000000"),
    ],
)
def test_digits(value: float, stderr: float | None, text: str) -> None:
    assert str(Estimate(value, stderr)) == text


def test_a_difference_shows_its_sign() -> None:
    assert Estimate(0.0105, 0.0042).text(signed=True) == "+0.0105 ± 0.0042"
    assert Estimate(-0.5).text(signed=True) == "-0.5000"


@given(st.lists(st.tuples(st.floats(0.1, 10), st.floats(-5, 5), st.floats(0, 3)), min_size=1))
def test_a_weighted_mean_is_that_of_independent_parts(
    rows: list[tuple[float, float, float]],
) -> None:
    weights = [weight for weight, _, _ in rows]
    found = weighted_mean(weights, [Estimate(value, error) for _, value, error in rows])
    assert found.value == pytest.approx(sum(w * v for w, v, _ in rows) / sum(weights))
    variance = sum((w * e / sum(weights)) ** 2 for w, _, e in rows)
    assert found.stderr == pytest.approx(math.sqrt(variance))
    unknown = weighted_mean([*weights, 1], [*(Estimate(v, e) for _, v, e in rows), Estimate(0)])
    assert unknown.stderr is None
