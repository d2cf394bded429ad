"""``latency``: what fewer KV heads are worth in time and memory."""

import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from mqasearch.cli.options import Device, Format, OutputFormat, TrustRemoteCode
from mqasearch.errors import UserError

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
    merge: Annotated[
        str, typer.Option(help="One without calibration; speed is the same.")
    ] = "mean",
    context: Annotated[str, typer.Option(help="Tokens of the prompt, a list.")] = "512,2048",
    batch_size: Annotated[str, typer.Option(help="Sequences at a time, a list.")] = "1,4",
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
    contexts, batch_sizes = _numbers("--context", context), _numbers("--batch-size", batch_size)

    from mqasearch.cli.tables import print_json, print_rows
    from mqasearch.models import load_model
    from mqasearch.serving.latency import Workload, measure, shares_of_layers
    from mqasearch.serving.latency_figure import check_figure_path, write_figure
    from mqasearch.serving.mask_json import check_model, read_mask

    workload = Workload(contexts, batch_sizes, n_tokens, repetitions)
    if output is not None:
        check_figure_path(output)
    document = None if mask is None else read_mask(mask)
    loaded = load_model(
        model,
        revision=revision,
        device=device,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
    )
    if document is None:
        variants = shares_of_layers(loaded.shape)
    else:
        check_model(document, loaded.shape, loaded.fingerprint)
        variants = {"original": loaded.shape.original, "mask": tuple(document["kv_heads"])}
    with _Progress() as progress:
        report = measure(loaded, variants, workload, merge=merge, progress=progress.update)
    if format is Format.JSON:
        print_json(report.document())
    else:
        print_rows(_HEADERS, _rows(report), format)
        print(_legend(report))
    if output is not None:
        write_figure(report, output)


_HEADERS = (
    "context",
    "batch",
    "variant",
    "prefill ms [range]",
    "bound",
    "ms per token [range]",
    "bound",
    "speedup [range]",
    "KV cache MB",
    "peak MB",
    "bound",
)


def _rows(report: Any) -> Iterator[tuple[str, ...]]:
    for row in report.rows:
        yield (
            str(row.context),
            str(row.batch_size),
            row.variant,
            _spread(row.prefill, 1e3, ".1f"),
            f"{1e3 * row.prefill_bound:.1f}",
            _spread(row.decode, 1e3, ".1f"),
            f"{1e3 * row.decode_bound:.1f}",
            _spread(row.decode_speedup, 1, ".2f"),
            _kv_cache(row),
            "–" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:.0f}",
            f"{row.peak_bound / 1e6:.0f}",
        )


def _spread(spread: Any, scale: float, form: str) -> str:
    middle, low, high = (
        format(scale * value, form) for value in (spread.median, spread.low, spread.high)
    )
    return f"{middle} [{low}–{high}]"


def _kv_cache(row: Any) -> str:
    """Counted and measured, once where they agree."""
    measured = f"{row.kv_bytes_measured / 1e6:.2f}"
    if row.kv_bytes_measured == row.kv_bytes_counted:
        return measured
    return f"{measured} (counted {row.kv_bytes_counted / 1e6:.2f})"


def _legend(report: Any) -> str:
    machine = report.machine
    load = "" if machine.load_average is None else f", load {machine.load_average:.1f}"
    return (
        f"{machine.device} ({machine.name}), {machine.dtype}, {machine.threads} threads{load}; "
        f"medians of {report.repetitions} interleaved repetitions; speedup of decoding, round by "
        f"round; bounds: weights and KV cache moved once at {machine.bandwidth / 1e9:.1f} GB/s"
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
