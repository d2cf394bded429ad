"""Latency in an engine of another process: a fake one, which reads the checkpoints' sizes."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fake_engine import FAKE, FakeFormat, add_fake_engine
from jsonschema import Draft202012Validator
from processes import below

from mqasearch.errors import ModelError, UnknownNameError, UserError
from mqasearch.export.mask_json import schema
from mqasearch.latency import engine_runner, runner
from mqasearch.latency.engine_runner import check_engine, default_batch_sizes, sequence_tokens
from mqasearch.latency.figure import figure_of
from mqasearch.latency.measuring import measure
from mqasearch.latency.report import Report
from mqasearch.latency.workload import Workload, shares_of_layers
from mqasearch.models import LoadedModel
from tests.models.checkpoints import tokenizer
from tests.tiny import tiny_model

SMALL = Workload(contexts=(6, 20), batch_sizes=(1, 2), n_tokens=3, repetitions=2)
ONE = Workload(contexts=(6,), batch_sizes=(1,), n_tokens=3, repetitions=1)


@pytest.fixture(autouse=True)
def places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The folder of temporary files, which is empty afterwards; no process is left either."""
    add_fake_engine(monkeypatch)
    monkeypatch.setattr("mqasearch.latency.machine.MIN_BUFFER_BYTES", 2**20)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = below()
    yield tmp_path
    assert not list(tmp_path.glob("mqasearch-latency-*"))
    assert below() <= before


def loaded(model_type: str = "llama") -> LoadedModel:
    model = tiny_model(model_type, n_layers=4).requires_grad_(False)
    cpu = torch.device("cpu")
    return LoadedModel(model, tokenizer(), f"tiny/{model_type}", "0" * 64, cpu, torch.float32)


def measured(workload: Workload = SMALL, model_type: str = "llama") -> Report:
    model = loaded(model_type)
    return measure(model, shares_of_layers(model.shape), workload, engine="fake")


@pytest.mark.parametrize("room", [True, False])
def test_the_cache_is_as_small_as_counted_whether_or_not_all_fit_together(
    room: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_runner, "_MEMORY_SHARE", 1.0 if room else 0.0)
    report = measured()
    assert len(report.rows) == len(report.variants) * len(SMALL.settings)
    for row in report.rows:
        assert row.kv_bytes_measured == row.kv_bytes_counted
        assert len(row.decode.samples) == SMALL.repetitions
        assert row.peak_bytes is None
    assert report.engine.name == "fake"
    assert report.engine.format == FakeFormat.name
    validator = Draft202012Validator(schema("latency"))
    assert not list(validator.iter_errors(report.document()))
    assert "fake" in figure_of(report).layout.title.text


def test_bytes_are_those_that_transformers_would_hold() -> None:
    model = loaded()
    variants = shares_of_layers(model.shape)
    ours, theirs = measure(model, variants, ONE), measure(model, variants, ONE, engine="fake")
    assert ours.variants == theirs.variants
    for one, other in zip(ours.rows, theirs.rows, strict=True):
        assert one.kv_bytes_measured == other.kv_bytes_measured
        assert one.decode_speedup_bound == other.decode_speedup_bound


@pytest.mark.parametrize(("share", "n_starts"), [(1.0, 5), (0.0, 1 + 5 * 2)])
def test_engines_that_do_not_fit_together_are_started_in_their_turns(
    share: float, n_starts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = set[int]()
    most, starts = 0, 0

    class Counted(engine_runner.Engine):
        def __init__(self, *arguments: object, **named: object) -> None:
            nonlocal most, starts
            super().__init__(*arguments, **named)  # type: ignore[arg-type]
            running.add(id(self))
            starts, most = starts + 1, max(most, len(running))

        def close(self) -> None:
            running.discard(id(self))
            super().close()

    monkeypatch.setattr(engine_runner, "Engine", Counted)
    monkeypatch.setattr(engine_runner, "_MEMORY_SHARE", share)
    workload = replace(SMALL, contexts=(6,), batch_sizes=(1,))
    measured(workload)
    assert not running
    assert most == (5 if share else 1)
    assert starts <= n_starts


def test_progress_ends_at_the_total() -> None:
    seen: list[tuple[int, int]] = []
    model = loaded()
    variants = shares_of_layers(model.shape)

    def note(done: int, total: int) -> None:
        seen.append((done, total))

    measure(model, variants, ONE, engine="fake", progress=note)
    assert seen == [(done, len(seen)) for done in range(1, len(seen) + 1)]


def test_a_model_type_that_no_format_of_the_engine_expresses_is_refused() -> None:
    with pytest.raises(ModelError, match=r"opt model.*engines that do: transformers") as raised:
        measured(model_type="opt")
    assert "\n" not in str(raised.value)


def test_an_engine_that_fails_is_told_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        engine_runner.Engine, "time", lambda self, *_: self.generate([[1]], n_tokens=-1)
    )
    with pytest.raises(UserError, match="the engine's last words"):
        measured(ONE)


def test_too_little_memory_is_found_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch, places: Path
) -> None:
    monkeypatch.setattr(runner, "available_bytes", lambda _: 1000)
    monkeypatch.setattr(engine_runner, "convert_checkpoint", None)
    with pytest.raises(UserError, match="not enough memory for a context of 6"):
        measured(ONE)
    assert not list(places.iterdir())


def test_too_little_room_is_found_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch, places: Path
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match="TMPDIR"):
        measured(ONE)
    assert not list(places.iterdir())


def test_positions_suffice_for_the_token_that_prefill_gives() -> None:
    positions = loaded().model.config.max_position_embeddings
    n_tokens = ONE.n_tokens
    most = positions - n_tokens - 1
    fits, exceeds = replace(ONE, contexts=(most,)), replace(ONE, contexts=(most + 1,))
    assert sequence_tokens(fits) == positions
    measured(fits)
    with pytest.raises(UserError, match=f"--context {most} or less"):
        measured(exceeds)


def test_what_an_engine_cannot_is_refused_before_a_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(UnknownNameError, match="'fake'"):
        check_engine("fakes", None, ONE)
    with pytest.raises(UnknownNameError, match="'transformers'"):
        check_engine("transformer", None, ONE)
    with pytest.raises(UserError, match="--engine-python"):
        check_engine("transformers", Path("python"), ONE)
    with pytest.raises(UserError, match="cannot be run"):
        check_engine("fake", Path("absent/python"), ONE)
    add_fake_engine(monkeypatch, replace(FAKE, batches=False))
    assert default_batch_sizes("fake") == (1,)
    assert max(default_batch_sizes("transformers")) > 1
    check_engine("fake", None, ONE)
    with pytest.raises(UserError, match="--batch-size"):
        check_engine("fake", None, SMALL)
    add_fake_engine(monkeypatch, replace(FAKE, module="no_such_module_anywhere"))
    with pytest.raises(UserError, match="pip install"):
        check_engine("fake", None, ONE)
