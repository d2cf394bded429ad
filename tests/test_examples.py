"""The examples in docstrings do what they show, and the seams of the package have one."""

import doctest
import importlib
import inspect
from pathlib import Path

import pytest

import mqasearch
from mqasearch.budget import Budget
from mqasearch.evaluation import Evaluator
from mqasearch.families import Family
from mqasearch.formats import Format
from mqasearch.mask import LayerMask
from mqasearch.merging import Merge
from mqasearch.queue import Queue
from mqasearch.registry import Registry
from mqasearch.scores import ScoreStore
from mqasearch.scoring import FakeScorer
from mqasearch.selectors import Selector, SelectorSampler

PACKAGE = Path(mqasearch.__file__).parent
ELSEWHERE = {"api", "engines.engine"}  # need a model or an engine: their own tests run them
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if ">>> " in path.read_text()
} - ELSEWHERE
SEAMS = (
    Budget,
    Evaluator,
    FakeScorer,
    Family,
    Format,
    LayerMask,
    Merge,
    Queue,
    Registry,
    ScoreStore,
    Selector,
    SelectorSampler,
)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(f"mqasearch.{name}")
    found = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert found.attempted
    assert not found.failed


@pytest.mark.parametrize("seam", SEAMS)
def test_seams_have_an_example(seam: type) -> None:
    assert "Example" in (inspect.getdoc(seam) or "")
