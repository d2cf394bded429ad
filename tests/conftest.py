"""Fixtures that the whole suite shares, and the marks that say why a test is not quick."""

import os
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from command_line import Command
from studies_on_fake import storage_in

from mqasearch.mask import ModelShape
from mqasearch.record import Storage

pytest_plugins = ["postgres"]

MARKS = {
    "model": {"tasks/test_offline.py"},
    "postgres": {"launch/test_embedded_postgres.py"},
    "processes": {
        "assets/test_wheels.py",
        "cli/test_signals.py",
        "evaluation/test_racing_benchmark.py",
        "faults",
        "launch/test_local_children.py",
        "launch/test_ray_workers.py",
        "launch/test_run_workers.py",
        "launch/test_slurm_script.py",
        "queue/test_orphans.py",
        "worker/test_workers.py",
        "selectors/test_selection_benchmark.py",
        "checkpoint/test_convert_memory.py",
    },
    "engine": {
        "engines/test_engines.py",
        "formats/test_gguf.py",
        "formats/test_gguf_served.py",
        "formats/test_gguf_tokenizer.py",
        "latency/test_engine_runner.py",
    },
    "long": {
        "cli/test_progress.py",
        "cli/test_tables.py",
        "conversion/test_refit.py",
        "conversion/test_tuning.py",
        "tasks/test_comparison.py",
        "forward/test_plan_runner.py",
        "scoring/test_shared_prefix.py",
        "healing",
        "study/test_ranking.py",
        "creation/test_direction.py",
        "study/test_ending.py",
        "evaluation/test_evaluator.py",
        "creation/test_more_trials.py",
        "study/test_generations.py",
        "scoring/test_healing_models.py",
        "worker/test_healing_shared.py",
        "record/test_old_trials.py",
        "worker/test_out_of_memory.py",
        "study/test_recording.py",
        "worker/test_run.py",
        "worker/test_search_healing.py",
        "record/test_storage_conformance.py",
        "record/test_storage_faults.py",
        "record/test_storage_sharing.py",
        "evaluation/test_uncertainty.py",
        "study/test_verdicts.py",
        "selectors/test_optuna_cases.py",
        "checkpoint/test_convert.py",
        "checkpoint/test_convert_calibrated.py",
        "checkpoint/test_healed_mask.py",
        "formats/test_hf_folder.py",
        "export/test_mask_json.py",
        "checkpoint/test_reproducing.py",
        "checkpoint/test_reproduce_differences.py",
        "checkpoint/test_reproduce_refusals.py",
    },
}
"""Mark → files and folders; all of their tests have the mark. pyproject.toml says what each means.

If only some tests of a file are slow, each of these has its mark above it.
"""


@pytest.hookimpl(tryfirst=True)  # before pytest selects by -m
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by their files and folders, and mark those that ask for a PostgreSQL."""
    here = Path(__file__).parent
    gone = [place for marked in MARKS.values() for place in marked if not (here / place).exists()]
    assert not gone, f"MARKS names what is not there: {gone}"
    for item in items:
        path = item.path.relative_to(here)
        places = {path.as_posix(), *(parent.as_posix() for parent in path.parents)}
        for mark, marked in MARKS.items():
            if marked & places:
                item.add_marker(mark)
        if asks_for_postgres(item):
            item.add_marker("postgres")


def asks_for_postgres(item: pytest.Item) -> bool:
    """Whether it does so by a fixture, or by a parameter that names the kind of a database."""
    kinds = getattr(item, "callspec", None)
    values = kinds.params.values() if kinds else ()
    fixtures: list[str] = getattr(item, "fixturenames", [])
    return "postgres_server" in fixtures or any(
        isinstance(value, str) and value in ("postgres", "postgresql") for value in values
    )


def pytest_configure(config: pytest.Config) -> None:
    """If processes are left out, let a test fail that has no mark and starts this Python again."""
    if "processes" in config.option.markexpr:
        sys.addaudithook(refuse_processes)


def refuse_processes(event: str, arguments: tuple[object, ...]) -> None:
    if event == "subprocess.Popen" and "PYTEST_CURRENT_TEST" in os.environ:
        program, words, *_ = arguments
        if sys.executable in (str(program), *map(str, words if isinstance(words, list) else ())):
            raise RuntimeError("a test that starts a process needs the mark 'processes'")


@pytest.fixture
def shape() -> ModelShape:
    """A small grouped-query model: 6 layers, 4 query and 2 KV heads, bfloat16."""
    return ModelShape(
        n_layers=6, n_heads=4, n_kv_heads=2, head_dim=8, hidden_size=32, bytes_per_element=2
    )


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Storage]:
    """An SQLite database of its own for the studies of one test."""
    with closing(storage_in(tmp_path)) as opened:
        yield opened


@pytest.fixture
def mqasearch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path
) -> Command:
    """``mqasearch(LINE)`` in the working folder; each folder of tests makes its own kind of it."""
    return Command(monkeypatch, capsys)


@pytest.fixture(autouse=True)
def _nobody_is_told_to_stop() -> Iterator[None]:
    """Undo a test's signal to its own process, so that it does not hurry the tests after it."""
    yield
    if (patience := sys.modules.get("mqasearch.database.patience")) is not None:
        patience._hurried.clear()
