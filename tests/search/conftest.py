"""A database for the studies of one test."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from mqasearch.search.storage import Storage
from tests.studies_on_fake import storage_in


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Storage]:
    """An SQLite database of its own."""
    with closing(storage_in(tmp_path)) as opened:
        yield opened
