"""``latency``: what fewer KV heads are worth in time and memory."""

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mqasearch.cli.options import Device, Format, OutputFormat, TrustRemoteCode
from mqasearch.errors import UserError

if TYPE_CHECKING:
    from mqasearch.latency import BudgetCheck, TimeBudget

CONTEXTS = (512, 2048)

log = logging.getLogger("mqasearch")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(latency)


def latency(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="smollm2-135m, a folder, a .gguf file, a hub id.")
    ],
    mask: Annotated[
        Path | None,
        typer.Option(metavar="MASK.json", help="Original against mask, not 0 to 100 % of layers."),
    ] = None,
    front: Annotated[
        bool, typer.Option("--front", help="With --mask MASKS.json: along its front.")
    ] = False,
    kv_heads: Annotated[
        str | None,
        typer.Option("--kv-heads", metavar="N,…", help="All layers with each number of KV heads."),
    ] = None,
    merge: Annotated[
        str, typer.Option(help="One without calibration; speed is the same.")
    ] = "mean",
    engine: Annotated[
        str, typer.Option(help="transformers, llama.cpp, mlx or vllm, as it is installed.")
    ] = "transformers",
    engine_python: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="The Python that has the engine; else $MQASEARCH_ENGINES/ENGINE/bin/python, "
            "or this one.",
        ),
    ] = None,
    context: Annotated[
        str | None,
        typer.Option(
            help="Tokens of the prompt, a list. Default: 512,2048; of a mask that was found under "
            "a decoding time, that of its budget."
        ),
    ] = None,
    batch_size: Annotated[
        str | None,
        typer.Option(
            help="Sequences at a time, a list. Default: 1,4, or what the engine can; or that of "
            "the budget."
        ),
    ] = None,
    n_tokens: Annotated[int, typer.Option(help="Tokens to decode.")] = 32,
    repetitions: Annotated[int, typer.Option(help="Timed runs of each variant.")] = 5,
    revision: Annotated[str | None, typer.Option(help="Of a hub id.")] = None,
    trust_remote_code: TrustRemoteCode = False,
    device: Device = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FIGURE.html", help="Plotly figure.")
    ] = None,
    format: OutputFormat = Format.TABLE,
) -> None:
    """Measure prefill, decoding, KV cache and peak memory against the number of MQA layers."""
    given = {
        "--context": None if context is None else _numbers("--context", context),
        "--batch-size": None if batch_size is None else _numbers("--batch-size", batch_size),
    }
    if front and mask is None:
        raise UserError("--front: give --mask MASKS.json too, which `mqasearch export` writes")
    if kv_heads is not None and mask is not None:
        raise UserError("--kv-heads: give it or --mask, not both")
    numbers = None if kv_heads is None else _numbers("--kv-heads", kv_heads)

    from mqasearch.latency import (
        TRANSFORMERS,
        Workload,
        check_budget,
        check_engine,
        check_figure_path,
        default_batch_sizes,
        measure,
        numbers_of_heads,
        time_budget,
        write_figure,
    )
    from mqasearch.models import load_model

    masks = _Masks(mask, front)
    budget = None if masks.best is None else time_budget(masks.best)
    workload = Workload(
        given["--context"] or ((budget.times.context,) if budget else CONTEXTS),
        given["--batch-size"]
        or ((budget.times.batch_size,) if budget else default_batch_sizes(engine)),
        n_tokens,
        repetitions,
    )
    check_engine(engine, engine_python, workload)
    if output is not None:
        check_figure_path(output)
    loaded = load_model(
        model,
        revision=revision,
        device=device,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
    )
    if numbers is None:
        variants = masks.variants(loaded, budget)
    else:
        variants = numbers_of_heads(loaded.shape, numbers, own_code=engine == TRANSFORMERS)
    with _Progress() as progress:
        report = measure(
            loaded,
            variants,
            workload,
            merge=merge,
            engine=engine,
            engine_python=engine_python,
            progress=progress.update,
        )
    check = None if budget is None or front else check_budget(report, budget)
    _print(report, check, format)
    if output is not None:
        write_figure(report, output)


class _Masks:
    """What ``--mask`` and ``--front`` name; nothing if there is no ``--mask``."""

    def __init__(self, path: Path | None, front: bool) -> None:
        from mqasearch.export import read_front, read_masks

        self.all: list[dict[str, Any]] = []
        self.front: list[tuple[int, ...]] | None = None
        if path is not None and front:
            best, self.front = read_front(path)
            self.all = [best]
        elif path is not None:
            self.all = read_masks(path)

    @property
    def best(self) -> dict[str, Any] | None:
        """The best mask."""
        return self.all[0] if self.all else None

    def variants(self, loaded: Any, budget: "TimeBudget | None") -> dict[str, tuple[int, ...]]:
        """Name → KV heads: shares of the layers, a front, or masks.

        Every selector's mask is measured if they were found under a decoding time. Else they take
        equally much of the cache, so that one stands for all.
        """
        from mqasearch.export import check_model
        from mqasearch.latency import along_front, finalists, shares_of_layers

        if self.best is None:
            return shares_of_layers(loaded.shape)
        check_model(self.best, loaded.shape, loaded.fingerprint)
        if self.front is not None:
            return along_front(loaded.shape, self.front)
        original = {"original": loaded.shape.original}
        if budget is not None:
            return original | finalists(self.all, budget)
        return original | {"mask": tuple(self.best["kv_heads"])}


def _print(report: Any, check: "BudgetCheck | None", format: Format) -> None:
    from mqasearch.cli.printed_tables import print_json, print_rows

    if format is Format.JSON:
        found = None if check is None else check.document
        print_json(report.document() | ({} if found is None else {"budget": found}))
        return
    headers, rows = _table(report)
    print_rows(headers, rows, format)
    print(_legend(report))
    print(f"{report.pays}.")
    for line in () if check is None else check.lines:
        print(line)


def _table(report: Any) -> tuple[list[str], list[list[str | None]]]:
    """Headers and rows; without columns of peak memory if it was not recorded."""
    columns: list[tuple[str, Callable[[Any], str | None]]] = [
        ("context", lambda row: str(row.context)),
        ("batch", lambda row: str(row.batch_size)),
        ("variant", lambda row: row.variant),
        ("prefill ms [range]", lambda row: _spread(row.prefill, 1e3, ".1f")),
        ("bound", lambda row: f"{1e3 * row.prefill_bound:.1f}"),
        ("speedup [range]", lambda row: _spread(row.prefill_speedup, 1, ".2f")),
        ("ms per token [range]", lambda row: _spread(row.decode, 1e3, ".1f")),
        ("bound", lambda row: f"{1e3 * row.decode_bound:.1f}"),
        ("speedup [range]", lambda row: _spread(row.decode_speedup, 1, ".2f")),
        ("bound", lambda row: f"{row.decode_speedup_bound:.2f}"),
        ("KV cache MB", _kv_cache),
    ]
    if any(row.peak_bytes is not None for row in report.rows):
        columns += [
            ("peak MB", lambda row: row.peak_bytes and f"{row.peak_bytes / 1e6:.0f}"),
            ("bound", lambda row: f"{row.peak_bound / 1e6:.0f}"),
        ]
    headers = [header for header, _ in columns]
    return headers, [[cell(row) for _, cell in columns] for row in report.rows]


def _spread(spread: Any, scale: float, form: str) -> str:
    middle, low, high = (
        format(scale * value, form) for value in (spread.median, spread.low, spread.high)
    )
    return f"{middle} [{low}–{high}]"


def _kv_cache(row: Any) -> str:
    """The counted and the measured KV cache, only one of them if they look the same."""
    measured, counted = (
        f"{n_bytes / 1e6:.2f}" for n_bytes in (row.kv_bytes_measured, row.kv_bytes_counted)
    )
    return measured if measured == counted else f"{measured} (counted {counted})"


def _legend(report: Any) -> str:
    machine = report.machine
    load = "" if machine.load_average is None else f", load {machine.load_average:.1f}"
    engine = report.engine
    written = "" if engine.format is None else f", format {engine.format}"
    return (
        f"{engine.name} {engine.version}{written} on {machine.device} ({machine.name}), "
        f"{machine.dtype}, {machine.threads} threads{load}; "
        f"medians of {report.repetitions} interleaved repetitions; speedups round by round; "
        f"bounds: weights and KV cache moved once at {machine.bandwidth / 1e9:.1f} GB/s"
    )


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"{option} {text!r}: give whole numbers, such as 512,2048") from None


class _Progress:
    """A bar on a terminal, a log line at every tenth of the runs elsewhere."""

    def __enter__(self) -> "_Progress":
        from rich.console import Console
        from rich.progress import Progress

        self._bars = Progress(console=Console(stderr=True), disable=not sys.stderr.isatty())
        self._task = self._bars.add_task("measuring", total=None)
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def update(self, done: int, total: int) -> None:
        """After every run."""
        self._bars.update(self._task, completed=done, total=total)
        if self._bars.disable and 10 * done // total > 10 * (done - 1) // total:
            log.info("latency: %d of %d runs", done, total)
