"""A working folder, a converted checkpoint in it, and the command line."""

from pathlib import Path

import pytest

from mqasearch import api
from mqasearch.evaluation.prepared import TaskLibrary
from mqasearch.search import scoring
from tests.evaluation.small_tasks import load_small
from tests.serving.converting import mask_for, original

ALIGNED = {"name": "aligned"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a model, and benchmarks and caches of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MQASEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(scoring, "TaskLibrary", lambda: TaskLibrary(load_small))
    original(tmp_path / "model")
    return tmp_path


@pytest.fixture
def out(folder: Path) -> Path:
    """A converted folder whose merge is calibrated."""
    api.convert(mask_for(folder / "model", folder / "mask.json", ALIGNED), folder / "out")
    return folder / "out"
