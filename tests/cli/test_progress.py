"""What a run says while it works: the best value so far, with its standard error."""

import logging
from pathlib import Path

import pytest
from studies_on_fake import run_study, spec_of, storage_in, studies_of

from mqasearch.cli.progress import Progress
from mqasearch.scoring import FakeScorer
from mqasearch.statistics import Estimate
from mqasearch.study import (
    STATUS_HEADERS,
    best_trial,
    find_studies,
    finished,
    open_selections,
    study_rows,
)


@pytest.mark.parametrize("metric", ["bits_per_byte", "kl"])
def test_progress_and_status_show_standard_errors(
    metric: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage = storage_in(tmp_path)
    tasks = [{"name": "hellaswag", "metric": metric}]
    spec = spec_of(tasks=tasks, selectors=["sensitivity"])
    with caplog.at_level(logging.INFO, logger="mqasearch"):
        run_study(storage, spec, FakeScorer(6), watcher=Progress().watcher)
    lines = [line for line in caplog.messages if line.startswith("s.sensitivity trial")]
    (study,) = studies_of(storage)
    best, rows = best_trial(study), finished(study)
    assert best is not None
    assert len(lines) == len(rows)
    for line, row in zip(lines, rows, strict=True):
        assert f"{row.facts.mask} {Estimate(row.facts.value, row.facts.stderr)}" in line
        delta = Estimate(row.facts.delta, row.facts.delta_stderr).text(signed=True)
        assert (f"({delta})" in line) == (metric == "bits_per_byte")
    assert f"best {Estimate(best.facts.value, best.facts.stderr)}" in lines[-1]
    (status,) = [dict(zip(STATUS_HEADERS, r, strict=True)) for r in study_rows(storage.optuna)]
    assert status["best value"] == pytest.approx(best.facts.value, abs=1e-6)
    assert status["stderr"] == pytest.approx(best.facts.stderr, rel=0.05)
    storage.close()


def test_a_line_is_of_the_trial_that_this_worker_ran(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Another worker may have finished one of a higher number meanwhile."""
    storage = storage_in(tmp_path)
    run_study(storage, spec_of(selectors=["sensitivity"]), FakeScorer(6))
    (selection,) = open_selections(storage.optuna, find_studies(storage.optuna, "s"))
    first, *_, last = finished(selection.study)
    with caplog.at_level(logging.INFO, logger="mqasearch"):
        for trial in (first, last, None):
            Progress().watcher.on_trial(selection, trial)
    one, two = [line for line in caplog.messages if line.startswith("s.sensitivity trial")]
    assert one.startswith(f"s.sensitivity trial {first.number}: {first.facts.mask} ")
    assert two.startswith(f"s.sensitivity trial {last.number}: {last.facts.mask} ")
    storage.close()
