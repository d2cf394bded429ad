"""Fixtures that the whole suite shares."""

import pytest

from mqasearch.mask import ModelShape

pytest_plugins = ["postgres"]


@pytest.fixture
def shape() -> ModelShape:
    """A small grouped-query model: 6 layers, 4 query and 2 KV heads, bfloat16."""
    return ModelShape(
        n_layers=6, n_heads=4, n_kv_heads=2, head_dim=8, hidden_size=32, bytes_per_element=2
    )
