"""The common look of the figures: colours, lines, and how numbers and trials are written.

Optuna's dashboard draws with plotly.js 2.35 and stores a figure in pieces of 2 kB. So no figure
carries a template, and everything that differs from plotly.js's defaults is set here.
"""

from collections.abc import Sequence

import plotly.graph_objects as go

from mqasearch.dashboard.data import TrialRow

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#4d4d4d")
"""Six colours of Okabe and Ito's palette, safe for the colour-blind, a violet and a grey."""

DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = ("circle", "square", "diamond", "cross", "triangle-up", "x", "star", "pentagon")

INK, FAINT, GRID = "#1f2933", "#8a94a6", "#e4e8ee"


def line_style(place: int) -> dict[str, str]:
    """Colour and dash of the n-th line."""
    return {"color": COLOURS[place % len(COLOURS)], "dash": DASHES[place % len(DASHES)]}


def finish(figure: go.Figure, height: int) -> go.Figure:
    """Apply the common look, written out so that the figure carries no template."""
    figure.update_layout(
        template="none",
        height=height,
        font={"family": "system-ui, sans-serif", "size": 12, "color": INK},
        margin={"l": 70, "r": 20, "t": 70, "b": 60},  # the legend below plotly.js's own buttons
        paper_bgcolor="#ffffff",
        plot_bgcolor="#ffffff",
        legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1.02, "yanchor": "bottom"},
        hoverlabel={"align": "left"},
    )
    figure.update_xaxes(gridcolor=GRID, zeroline=False, automargin=True)
    figure.update_yaxes(gridcolor=GRID, automargin=True)
    return figure


def described(row: TrialRow) -> str:
    """``greedy, trial 7, layers 3, 11``, and if it is known ``: 0.1053 ± 0.0042 (n=16)``."""
    text = f"{row.selector}, trial {row.number}, layers {row.words or 'none'}"
    if row.estimate is None or row.stderr is None:
        return text
    return f"{text}: {row.estimate}" + (f" (n={sum(row.n_docs)})" if row.n_docs else "")


def error_bars(margins: Sequence[float | None], colour: str) -> dict[str, object]:
    """Symmetric error bars, and none if a margin is unknown."""
    return {
        "type": "data",
        "array": list(margins),
        "color": colour,
        "thickness": 1.2,
        "width": 3,
        "visible": any(margin is not None for margin in margins),
    }


def format_bytes(count: int) -> str:
    """``23.0 kB``; units of 1,000."""
    size, units = float(count), ["B", "kB", "MB", "GB"]
    while size >= 1000 and len(units) > 1:
        size /= 1000
        units.pop(0)
    return f"{size:.0f} {units[0]}" if units[0] == "B" else f"{size:.1f} {units[0]}"
