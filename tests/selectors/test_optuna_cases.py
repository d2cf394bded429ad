"""Optuna's own suites for samplers, passed by every selector."""

from collections.abc import Callable

import pytest
from optuna.samplers import BaseSampler
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    RelativeSamplerTestCase,
    SingleOnlySamplerTestCase,
)

from mqasearch.search_space import SearchSpace
from mqasearch.selectors import SELECTORS, SelectorSampler, selector_of


@pytest.mark.parametrize("name", [*SELECTORS, "enqueued"])
class TestOptunaCases(BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase):
    """Their search spaces hold no layer of ours, so this is also the test of foreign spaces."""

    @pytest.fixture
    def sampler(self, name: str) -> Callable[[], BaseSampler]:
        return lambda: SelectorSampler(selector_of(name, SearchSpace(6, 2), seed=1))
