"""A working folder, a converted checkpoint in it, and the command line."""

from pathlib import Path

import pytest

from mqasearch import api
from mqasearch.scoring import scorers
from mqasearch.tasks import TaskLibrary
from tests.checkpoint.converting import mask_for, original
from tests.tasks.small_tasks import load_small

ALIGNED = {"name": "aligned"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a model, and benchmarks and caches of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MQASEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(scorers, "TaskLibrary", lambda: TaskLibrary(load_small))
    original(tmp_path / "model")
    return tmp_path


@pytest.fixture
def out(folder: Path) -> Path:
    """A converted folder whose merge is calibrated."""
    api.convert(mask_for(folder / "model", folder / "mask.json", ALIGNED), folder / "out")
    return folder / "out"
