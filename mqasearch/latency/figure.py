"""The latency figure: times and memory against the number of converted layers."""

import os
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mqasearch.errors import UserError
from mqasearch.files import write_whole
from mqasearch.latency.report import Report, Row, Spread

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#4d4d4d")
_INK, _GRID = "#1f2933", "#e4e8ee"
_Value = Callable[[Row], float | None]


def figure_of(report: Report) -> go.Figure:
    """Four panels: prefill, decoding, KV cache, peak memory. Each setting has a colour.

    Points are medians, bars reach from the least to the greatest repetition, and dotted lines are
    the bounds from bytes and bandwidth. Vertical axes are logarithmic, so equal distances are equal
    factors in every setting.
    """
    figure = make_subplots(
        rows=2,
        cols=2,
        vertical_spacing=0.14,
        subplot_titles=(
            "prefill, ms",
            f"decoding, ms per token (of {report.n_tokens})",
            "KV cache, MB",
            "peak memory, MB",
        ),
    )
    settings = dict.fromkeys((row.context, row.batch_size) for row in report.rows)
    for place, (context, batch_size) in enumerate(settings):
        rows = [
            row for row in report.rows if (row.context, row.batch_size) == (context, batch_size)
        ]
        panels = _Panels(figure, report, rows, f"{context} tokens × {batch_size}", place)
        panels.times(1, 1, lambda row: row.prefill, lambda row: row.prefill_bound)
        panels.times(1, 2, lambda row: row.decode, lambda row: row.decode_bound)
        panels.bytes(2, 1, lambda row: row.kv_bytes_measured, lambda row: row.kv_bytes_counted)
        panels.bytes(2, 2, lambda row: row.peak_bytes, lambda row: row.peak_bound)
    title, places = _axis(report)
    figure.update_xaxes(
        title_text=title, tickvals=[*places.values()], gridcolor=_GRID, zeroline=False
    )
    figure.update_yaxes(type="log", gridcolor=_GRID, exponentformat="none", automargin=True)
    figure.update_layout(
        template="none",
        title={"text": _title(report), "font": {"size": 15}, "y": 0.97, "yanchor": "top"},
        margin={"t": 140},
        height=860,
        font={"family": "system-ui, sans-serif", "size": 12, "color": _INK},
        paper_bgcolor="#ffffff",
        plot_bgcolor="#ffffff",
        legend={"orientation": "h", "y": -0.1},
    )
    return figure


def _axis(report: Report) -> tuple[str, dict[str, float]]:
    """The title of the x axis, and each variant's place on it.

    The places are numbers of converted layers, if these tell the variants apart.
    """
    counts = {variant.name: float(variant.n_converted) for variant in report.variants}
    if len(set(counts.values())) == len(counts):
        return "converted layers", counts
    most = max(variant.kv_bytes_per_token for variant in report.variants)
    shares = {v.name: 100 * v.kv_bytes_per_token / most for v in report.variants}
    return "KV cache per token, %", shares


def _title(report: Report) -> str:
    """What was measured, and which settings gain, in lines that fit on a page."""
    machine, engine = report.machine, report.engine
    return "<br>".join(
        [
            f"{report.model}, {engine.name} {engine.version} on {machine.device} ({machine.name}), "
            f"{machine.dtype}; dotted: bound at {machine.bandwidth / 1e9:.1f} GB/s",
            *(f"<sup>{line}</sup>" for line in textwrap.wrap(report.pays, 150)),
        ]
    )


def check_figure_path(path: Path) -> None:
    """Check, before anything is measured, that a figure can be written there.

    Raises:
        UserError: not an HTML file, or its folder does not exist or cannot be written to.
    """
    if path.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"{path}: the figure is a web page; name a file that ends in .html")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise UserError(f"{path}: its folder does not exist; create it, or name another")
    if not os.access(path.absolute().parent, os.W_OK):
        raise UserError(f"{path}: its folder cannot be written to; name another")


def write_figure(report: Report, path: Path) -> None:
    """Write the figure atomically, as a page that needs no network.

    Raises:
        UserError: the file cannot be written.
    """
    page = figure_of(report).to_html(include_plotlyjs=True)
    try:
        write_whole(path, page)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None


class _Panels:
    """Draws one setting's rows, in its colour."""

    def __init__(
        self, figure: go.Figure, report: Report, rows: Sequence[Row], name: str, place: int
    ) -> None:
        _, places = _axis(report)
        self._x = [places[row.variant] for row in rows]
        self._figure, self._rows, self._name = figure, rows, name
        self._colour = _COLOURS[place % len(_COLOURS)]

    def times(self, row: int, column: int, spread: Callable[[Row], Spread], bound: _Value) -> None:
        """Medians in milliseconds with their spread, and the bound."""
        spreads = [spread(one) for one in self._rows]
        bars = {
            "type": "data",
            "symmetric": False,
            "array": [1e3 * (one.high - one.median) for one in spreads],
            "arrayminus": [1e3 * (one.median - one.low) for one in spreads],
            "thickness": 1.2,
            "width": 4,
        }
        self._line(row, column, [1e3 * one.median for one in spreads], "ms", bars)
        self._bound(row, column, bound, 1e3)

    def bytes(self, row: int, column: int, value: _Value, bound: _Value) -> None:
        """Megabytes, and the bound."""
        values = [value(one) for one in self._rows]
        self._line(row, column, [None if v is None else v / 1e6 for v in values], "MB", None)
        self._bound(row, column, bound, 1e-6)

    def _line(
        self,
        row: int,
        column: int,
        y: Sequence[float | None],
        unit: str,
        bars: dict[str, object] | None,
    ) -> None:
        self._figure.add_trace(
            go.Scatter(
                x=self._x,
                y=list(y),
                error_y=bars,
                text=[one.variant for one in self._rows],
                name=self._name,
                legendgroup=self._name,
                showlegend=(row, column) == (1, 1),
                mode="lines+markers",
                line={"color": self._colour, "width": 2.5},
                hovertemplate=f"%{{text}}: %{{y:.4g}} {unit}",
            ),
            row=row,
            col=column,
        )

    def _bound(self, row: int, column: int, bound: _Value, scale: float) -> None:
        values = [bound(one) for one in self._rows]
        self._figure.add_trace(
            go.Scatter(
                x=self._x,
                y=[None if value is None else scale * value for value in values],
                name=f"{self._name}, bound",
                legendgroup=self._name,
                showlegend=False,
                mode="lines",
                line={"color": self._colour, "width": 1.5, "dash": "dot"},
                hovertemplate="bound: %{y:.4g}",
            ),
            row=row,
            col=column,
        )
