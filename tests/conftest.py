"""Fixtures that the whole suite shares, and the marks that say why a test is not a quick one."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import Command

from mqasearch.mask import ModelShape

pytest_plugins = ["postgres"]

MARKS = {
    "model": {"evaluation/test_offline.py"},
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
        "search/test_claims_orphans.py",
        "search/test_workers.py",
        "selectors/test_selection_benchmark.py",
        "serving/test_convert_memory.py",
    },
    "engine": {
        "serving/test_engines.py",
        "serving/test_gguf.py",
        "serving/test_gguf_served.py",
        "serving/test_gguf_tokenizer.py",
        "serving/test_latency_engines.py",
    },
    "long": {
        "cli/test_progress.py",
        "cli/test_tables.py",
        "conversion/test_refit.py",
        "conversion/test_tuning.py",
        "evaluation/test_comparison.py",
        "evaluation/test_runner.py",
        "evaluation/test_shared_prefix.py",
        "healing",
        "search/test_best.py",
        "search/test_direction.py",
        "search/test_ending.py",
        "search/test_evaluator.py",
        "search/test_extend.py",
        "search/test_generations.py",
        "search/test_healing_models.py",
        "search/test_healing_shared.py",
        "search/test_old_trials.py",
        "search/test_out_of_memory.py",
        "search/test_record.py",
        "search/test_run.py",
        "search/test_search_healing.py",
        "search/test_storage_conformance.py",
        "search/test_storage_faults.py",
        "search/test_storage_sharing.py",
        "search/test_uncertainty.py",
        "search/test_verdict.py",
        "selectors/test_optuna_cases.py",
        "serving/test_convert.py",
        "serving/test_convert_calibrated.py",
        "serving/test_healed.py",
        "serving/test_hf_folder.py",
        "serving/test_mask_json.py",
        "serving/test_reproduce.py",
        "serving/test_reproduce_differences.py",
        "serving/test_reproduce_refusals.py",
    },
}
"""Mark → the files and folders all of whose tests have it; pyproject.toml says what each means.

A slow test of a file whose others are quick has its mark above it.
"""


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by where they are, and those that ask for a PostgreSQL."""
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
    """By a fixture, or by the parameter of one that takes the URL of a database by its kind."""
    kinds = getattr(item, "callspec", None)
    values = kinds.params.values() if kinds else ()
    fixtures: list[str] = getattr(item, "fixturenames", [])
    return "postgres_server" in fixtures or any(
        isinstance(value, str) and value in ("postgres", "postgresql") for value in values
    )


def pytest_configure(config: pytest.Config) -> None:
    """Where processes are left out, a test without a mark that starts this Python again fails."""
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
def mqasearch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path
) -> Command:
    """``mqasearch(LINE)`` in the working folder, which each folder of tests has of its own kind."""
    return Command(monkeypatch, capsys)


@pytest.fixture(autouse=True)
def _nobody_is_told_to_stop() -> Iterator[None]:
    """A signal that one test sends to its own process does not hurry those after it."""
    yield
    if (patience := sys.modules.get("mqasearch.results.patience")) is not None:
        patience._hurried.clear()
