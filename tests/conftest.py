"""Fixtures that the whole suite shares."""

import sys
from collections.abc import Iterator

import pytest

from mqasearch.mask import ModelShape

pytest_plugins = ["postgres"]


@pytest.fixture
def shape() -> ModelShape:
    """A small grouped-query model: 6 layers, 4 query and 2 KV heads, bfloat16."""
    return ModelShape(
        n_layers=6, n_heads=4, n_kv_heads=2, head_dim=8, hidden_size=32, bytes_per_element=2
    )


@pytest.fixture(autouse=True)
def _nobody_is_told_to_stop() -> Iterator[None]:
    """A signal that one test sends to its own process does not hurry those after it."""
    yield
    if (patience := sys.modules.get("mqasearch.results.patience")) is not None:
        patience._hurried.clear()
