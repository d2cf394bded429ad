"""Latency: what is counted is what is measured, variants take turns, bounds follow the bytes."""

from pathlib import Path

import pytest
import torch
from jsonschema import Draft202012Validator, FormatChecker
from transformers import DynamicCache

from mqasearch.errors import MaskError, UnknownNameError, UserError
from mqasearch.export.mask_json import schema
from mqasearch.latency import measuring, transformers_runner
from mqasearch.latency.byte_counts import weight_bytes, weight_bytes_read
from mqasearch.latency.figure import check_figure_path, figure_of, write_figure
from mqasearch.latency.measuring import measure
from mqasearch.latency.report import Report
from mqasearch.latency.runner import Run
from mqasearch.latency.transformers_runner import cache_keyword
from mqasearch.latency.workload import Setting, Workload, shares_of_layers
from mqasearch.mask import KVHeads
from mqasearch.models import LoadedModel
from tests.models.checkpoints import tokenizer
from tests.tiny import MODEL_TYPES, tiny_model, tiny_tokens

SMALL = Workload(contexts=(6, 20), batch_sizes=(1, 2), n_tokens=3, repetitions=2)
ONE = Workload(contexts=(6,), batch_sizes=(1,), n_tokens=2, repetitions=1)


@pytest.fixture(autouse=True)
def _small_bandwidth_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mqasearch.latency.machine.MIN_BUFFER_BYTES", 2**20)


def loaded(model_type: str = "llama", n_kv_heads: int | None = None) -> LoadedModel:
    model = tiny_model(model_type, n_layers=4, n_kv_heads=n_kv_heads).requires_grad_(False)
    cpu = torch.device("cpu")
    return LoadedModel(model, tokenizer(), f"tiny/{model_type}", "0" * 64, cpu, torch.float32)


def measured(model: LoadedModel, workload: Workload = SMALL) -> Report:
    return measure(model, shares_of_layers(model.shape), workload)


@pytest.fixture(scope="module")
def report() -> Report:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mqasearch.latency.machine.MIN_BUFFER_BYTES", 2**20)
        return measured(loaded("gpt2"))


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_model_fills_the_cache_that_it_is_given_by_its_own_word_for_it(model_type: str) -> None:
    """Whichever word this transformers has: a warning of an old one would be an error here."""
    model, tokens = tiny_model(model_type), tiny_tokens(batch=1, length=5)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(tokens, **{cache_keyword(model): cache})
    assert cache.get_seq_length() == 5


@pytest.mark.long
@pytest.mark.parametrize(
    ("model_type", "n_kv_heads"),
    [("llama", 2), ("mistral", 2), ("gemma2", 4), ("phi3", 2), ("gpt_neox", 4), ("opt", 4)],
)
def test_counted_bytes_are_measured_bytes(model_type: str, n_kv_heads: int) -> None:
    """mistral and gemma2 have windows of 8 tokens: shorter than the longer context."""
    model = loaded(model_type, n_kv_heads)
    rows = measured(model, Workload((6, 20), (2,), n_tokens=3, repetitions=1)).rows
    for row in rows:
        assert row.kv_bytes_counted == row.kv_bytes_measured
    for context in (6, 20):
        first, *_, last = [row.kv_bytes_measured for row in rows if row.context == context]
        assert first == n_kv_heads * last


def test_the_cache_of_full_attention_grows_with_every_token(report: Report) -> None:
    per_token = {variant.name: variant.kv_bytes_per_token for variant in report.variants}
    for row in report.rows:
        n_tokens = row.context + report.n_tokens
        assert row.kv_bytes_measured == row.batch_size * n_tokens * per_token[row.variant]


def test_every_variant_is_measured_in_every_setting(report: Report) -> None:
    assert len(report.rows) == len(report.variants) * len(SMALL.settings)
    for row in report.rows:
        for spread in (row.prefill, row.decode, row.prefill_speedup, row.decode_speedup):
            assert 0 < spread.low <= spread.median <= spread.high
            assert len(spread.samples) == report.repetitions
        assert row.peak_bytes is None or row.peak_bytes > 0
    originals = [row for row in report.rows if row.variant == report.variants[0].name]
    assert all(set(row.decode_speedup.samples) == {1.0} for row in originals)


def test_bounds_fall_with_the_bytes(report: Report) -> None:
    for setting in SMALL.settings:
        rows = [row for row in report.rows if Setting(row.context, row.batch_size) == setting]
        for bound in ("prefill_bound", "decode_bound", "peak_bound"):
            values = [getattr(row, bound) for row in rows]
            assert values == sorted(values, reverse=True)
            assert len(set(values)) == len(values)
    machine = report.machine
    assert machine.bandwidth == max(machine.bandwidths.values()) > 0
    weights = {variant.name: variant.weight_bytes for variant in report.variants}
    originals = {
        Setting(row.context, row.batch_size): row.decode_bound
        for row in report.rows
        if row.variant == report.variants[0].name
    }
    for row in report.rows:
        assert row.peak_bound == weights[row.variant] + row.kv_bytes_counted
        moved = row.decode_bound * machine.bandwidth
        assert moved < row.peak_bound
        of_original = originals[Setting(row.context, row.batch_size)]
        assert row.decode_speedup_bound == pytest.approx(of_original / row.decode_bound)


@pytest.mark.parametrize("tied", [False, True])
def test_a_step_reads_all_weights_but_tables(tied: bool) -> None:
    model = loaded("gpt2").model
    assert model.lm_head.weight is model.transformer.wte.weight
    positions = model.transformer.wpe.weight.nbytes
    if tied:
        assert weight_bytes(model) - weight_bytes_read(model) == positions
        return
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
    words = model.transformer.wte.weight.nbytes
    assert weight_bytes(model) - weight_bytes_read(model) == positions + words


def test_variants_take_turns_and_no_one_is_always_first(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[int] = []

    def record(model: torch.nn.Module, prompt: torch.Tensor, n_tokens: int) -> Run:
        order.append(id(model))
        return Run(1.0, 1.0, 1)

    monkeypatch.setattr(transformers_runner, "run_once", record)
    workload = Workload((6,), (1,), n_tokens=2, repetitions=5)
    measured(loaded(), workload)
    rounds = [order[start : start + 5] for start in range(0, len(order), 5)]
    warm_up, memory, *timed = rounds
    assert len(timed) == workload.repetitions
    assert all(set(names) == set(memory) == set(warm_up) for names in timed)
    assert len({names[0] for names in timed}) == 5


def test_progress_ends_at_the_total() -> None:
    seen: list[tuple[int, int]] = []
    model = loaded()
    variants = shares_of_layers(model.shape)
    measure(model, variants, SMALL, progress=lambda done, total: seen.append((done, total)))
    total = len(variants) * len(SMALL.settings) * (1 + SMALL.repetitions)
    assert seen == [(done, total) for done in range(1, total + 1)]


def test_json_is_as_published(report: Report) -> None:
    published = schema("latency")
    Draft202012Validator.check_schema(published)
    validator = Draft202012Validator(published, format_checker=FormatChecker())
    document = report.document()
    assert not list(validator.iter_errors(document))
    assert document["engine"]["name"] == "transformers"
    assert document["pays"] == report.pays


def test_documents_that_were_written_before_there_were_engines_are_valid(report: Report) -> None:
    document = report.document()
    del document["engine"], document["pays"]
    for row in document["rows"]:
        del row["decode_speedup_bound"]
    assert not list(Draft202012Validator(schema("latency")).iter_errors(document))


def test_the_figure_shows_the_rows(report: Report, tmp_path: Path) -> None:
    figure = figure_of(report)
    lines = [trace for trace in figure.data if trace.mode == "lines+markers"]
    bounds = [trace for trace in figure.data if trace.mode == "lines"]
    assert len(lines) == len(bounds) == 4 * len(SMALL.settings)
    shown = {value for trace in lines for value in trace.y}
    assert {1e3 * row.decode.median for row in report.rows} <= shown
    assert {row.kv_bytes_measured / 1e6 for row in report.rows} <= shown
    assert all(list(trace.x) == [0, 1, 2, 3, 4] for trace in figure.data)
    path = tmp_path / "latency.html"
    write_figure(report, path)
    page = path.read_text()
    assert "Plotly.newPlot" in page
    assert "20 tokens" in page
    assert "Too few repetitions" in page
    assert "https://cdn.plot.ly/plotly" not in page
    assert [file.name for file in tmp_path.iterdir()] == ["latency.html"]


@pytest.mark.parametrize(
    ("workload", "merge", "kv_heads", "error", "message"),
    [
        (Workload((120,), (1,), 16), "mean", (1, 1, 1, 1), UserError, "--context 112"),
        (Workload((8,), (1,), 128), "mean", (1, 1, 1, 1), UserError, "--n-tokens"),
        (Workload((100,), (10**9,), 2), "mean", (1, 1, 1, 1), UserError, "memory"),
        (ONE, "meen", (1, 1, 1, 1), UnknownNameError, "'mean'"),
        (ONE, "mean", (1, 1), MaskError, "2 layers"),
        (ONE, "mean", (3, 1, 1, 1), MaskError, "divide"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    workload: Workload, merge: str, kv_heads: KVHeads, error: type[UserError], message: str
) -> None:
    model = loaded()
    variants = {"original": model.shape.original, "mask": kv_heads}
    with pytest.raises(error, match=message) as raised:
        measure(model, variants, workload, merge=merge)
    assert "\n" not in str(raised.value)


def test_a_busy_machine_is_said_to_be(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for load, n_warnings in ((None, 0), (0.1, 0), (1e6, 1)):
        caplog.clear()
        monkeypatch.setattr(measuring, "load_average", lambda load=load: load)
        assert measured(loaded(), ONE).machine.load_average == load
        assert len([row for row in caplog.records if "load average" in row.message]) == n_warnings


def test_memory_that_runs_out_names_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(transformers_runner, "peak_growth", no_memory)
    with pytest.raises(UserError, match="context of 6 with batch size 1"):
        measured(loaded(), ONE)


@pytest.mark.parametrize("name", ["figure.png", "nowhere/figure.html", "folder.html"])
def test_a_place_that_holds_no_figure_is_refused_at_once(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(UserError):
        check_figure_path(tmp_path / name)
