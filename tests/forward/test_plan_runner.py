"""Memory that runs out in the middle of a plan, wherever that is; and how far a plan is."""

from itertools import count, pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tasks.small_tasks import load_small, small_tokenizer
from tiny import tiny_model

from mqasearch import time_left
from mqasearch.conversion import ConvertibleModel
from mqasearch.families import family_of
from mqasearch.merging import merge_of
from mqasearch.score import Documents, Score, TaskSpec
from mqasearch.scoring import SharedPrefixScorer
from mqasearch.tasks import TaskLibrary

DOCUMENTS = Documents("full", 2)
LIBRARY = TaskLibrary(load_small)
MASK = (1, 2, 1)


class ShortOfMemory:
    """Stands before a runner's model, and fails some runs of it, numbered from 0."""

    def __init__(self, model: Any, failing: range) -> None:
        self._model = model
        self._states = model.states
        self._failing = failing
        self.n_runs = 0

    def states(self, *args: Any, **options: Any) -> Any:
        number, self.n_runs = self.n_runs, self.n_runs + 1
        if number in self._failing:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return self._states(*args, **options)


def score(
    monkeypatch: pytest.MonkeyPatch, kind: str, failing: range, **options: Any
) -> tuple[Score, int]:
    """The mask's score, and how often the model was run for it."""
    model = tiny_model("llama", n_kv_heads=2)
    convertible = ConvertibleModel(model, family_of("llama"), merge_of("mean"))
    scorer = SharedPrefixScorer(
        convertible, small_tokenizer(), "f", model.dtype, library=LIBRARY, **options
    )
    short = ShortOfMemory(scorer.lm.resumable, failing)
    monkeypatch.setattr(scorer.lm.resumable, "states", short.states)
    found = scorer.score(MASK, TaskSpec(kind), DOCUMENTS)
    return found, short.n_runs


@pytest.mark.parametrize("kind", ["choice", "long"])  # long: batches with nothing to compare
@pytest.mark.parametrize("options", [{}, {"reference_bytes": 0}, {"state_bytes": 0}])
@pytest.mark.parametrize("n_failures", [1, 2])
def test_law_a_score_is_that_of_its_mask_wherever_memory_runs_out(
    monkeypatch: pytest.MonkeyPatch, kind: str, options: dict[str, int], n_failures: int
) -> None:
    options = options | {"batch_tokens": 64}
    undisturbed, _ = score(monkeypatch, kind, range(0), **options)
    assert undisturbed.values["kl"] > 0.001  # or the original would do
    for first in count():
        failing = range(first, first + n_failures)
        found, n_runs = score(monkeypatch, kind, failing, **options)
        if n_runs <= first:
            break
        for metric, values in undisturbed.documents.items():
            assert found.documents[metric] == pytest.approx(values, abs=1e-5), (first, metric)
    assert first > 3


@pytest.mark.parametrize("masks", [[MASK], [MASK, (2, 1, 1), (1, 1, 2)]])
def test_long_scoring_says_how_far_it_is(
    masks: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each look at the clock comes 31 seconds after the last, so that every batch is told."""
    clock = count(0, 31)
    monkeypatch.setattr(time_left, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    caplog.set_level("INFO", logger="mqasearch")
    model = tiny_model("llama", n_kv_heads=2)
    convertible = ConvertibleModel(model, family_of("llama"), merge_of("mean"))
    scorer = SharedPrefixScorer(
        convertible, small_tokenizer(), "f", model.dtype, library=LIBRARY, batch_tokens=64
    )
    scorer.score_many(masks, TaskSpec("choice"), Documents("full", None))
    whose = "a mask" if len(masks) == 1 else "2 masks"
    for beginning in ("scoring the original: ", f"scoring {whose}: "):
        told = [line.removeprefix(beginning) for line in caplog.messages if beginning in line]
        shares = [int(line.split(" ")[0]) for line in told]
        assert len(shares) > 1
        assert all(0 < one < other < 100 for one, other in pairwise(shares))
