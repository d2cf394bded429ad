"""The figures of a comparison: plain rows in, Plotly figures out.

Only long-known trace types and plain lists are used, since Optuna's dashboard draws with plotly.js
2.35. Layers are categories: on a number axis, a label such as ``12`` would be a position and not a
name.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from mqasearch.dashboard.data import Comparison, StudyRows, TrialRow
from mqasearch.dashboard.heatmap import masks_by_trial
from mqasearch.dashboard.sensitivity_figure import SENSITIVITY_CAPTION, layer_sensitivity
from mqasearch.dashboard.style import (
    COLOURS,
    FAINT,
    SYMBOLS,
    described,
    error_bars,
    finish,
    format_bytes,
    line_style,
)
from mqasearch.study import best, front


@dataclass(frozen=True, slots=True)
class Titled:
    """A figure with what a reader needs beside it.

    Attributes:
        key: a valid HTML id, the figure's name wherever it is stored.
        title: a few words.
        caption: how to read it, and what it must not be taken for.
        figure: the figure itself, without a title of its own.
    """

    key: str
    title: str
    caption: str
    figure: go.Figure


def selectors_by_evaluations(comparison: Comparison) -> go.Figure:
    """Best value of a mask at the budget against the number of masks scored, one line per selector.

    Every scored mask counts, including probes and masks whose score another selector had paid for:
    the figure compares how much a selector has to know, not which one ran first.
    """
    figure = go.Figure()
    for place, study in enumerate(comparison.selectors):
        x, y, text = _best_so_far(study)
        note = "" if x else f": {len(study.scored)} scored, none at the budget yet"
        figure.add_trace(
            go.Scatter(
                x=x,
                y=y,
                text=text,
                name=study.selector + note,
                mode="lines+markers",
                line={"shape": "hv", "width": 2.5, **line_style(place)},
                marker={"size": 8, "symbol": SYMBOLS[place % len(SYMBOLS)]},
                hovertemplate="%{text}<br>best %{y:.5g} after %{x} masks",
            )
        )
    _add_original(figure, comparison.selectors)
    figure.update_xaxes(title_text="masks scored", rangemode="tozero")
    figure.update_yaxes(title_text=f"best {comparison.studies[0].metric}")
    return finish(figure, height=420)


def budget_front(comparisons: Sequence[Comparison]) -> go.Figure:
    """Best value against the number of converted layers, over all selectors and budgets.

    Args:
        comparisons: comparisons of one model and one set of tasks, one per budget; probes count
            too.
    """
    if comparisons[0].studies[0].has_levels:
        return bytes_front(comparisons)
    points = _best_of_each_size(comparisons)
    figure = go.Figure(
        go.Scatter(
            x=[row.n_converted for _, row in points],
            y=[row.value for _, row in points],
            error_y=error_bars([row.delta_margin for _, row in points], COLOURS[0]),
            text=[f"{study.comparison}, {described(row)}" for study, row in points],
            mode="lines+markers",
            line={"color": COLOURS[0], "width": 2},
            marker={"size": 8},
            hovertemplate="%{x} layers: %{y:.5g}<br>%{text}<extra></extra>",
            showlegend=False,
        )
    )
    _mark_budgets(figure, comparisons, [row for _, row in points])
    ticks = _spread([row for _, row in points], 16)
    figure.update_xaxes(
        title_text="converted layers, KV cache per token",
        tickvals=[row.n_converted for row in ticks],
        ticktext=[_with_bytes(row) for row in ticks],
        tickangle=0,
    )
    figure.update_yaxes(title_text=f"best {comparisons[0].studies[0].metric}")
    return finish(figure, height=400)


def bytes_front(comparisons: Sequence[Comparison]) -> go.Figure:
    """Value against KV bytes: the masks that no other one beats, and each selector's best mask.

    Args:
        comparisons: as for ``budget_front``; a layer has one of several numbers of KV heads.
    """
    first = comparisons[0].studies[0]
    studies = [study for comparison in comparisons for study in comparison.studies]
    rows = [row for study in studies for row in study.scored if row.kv_bytes is not None]
    figure = go.Figure()
    found = front(rows, lambda row: row.kv_bytes or 0, maximize=first.maximize)
    _add_points(figure, found, "front", {"mode": "lines+markers", "line": {"color": COLOURS[0]}})
    selectors = dict.fromkeys(study.selector for study in studies)
    for place, selector in enumerate(selectors, start=1):
        bests = [study.best for study in studies if study.selector == selector]
        chosen = [row for row in bests if row is not None and row.kv_bytes is not None]
        symbol = SYMBOLS[place % len(SYMBOLS)] + "-open"
        look = {"size": 12, "symbol": symbol, "color": COLOURS[place % len(COLOURS)]}
        _add_points(figure, chosen, selector, {"mode": "markers", "marker": look})
    ticks = _spread(sorted(found, key=lambda row: row.kv_bytes or 0), 10)
    figure.update_xaxes(
        title_text="KV cache per token",
        tickvals=[row.kv_bytes for row in ticks],
        ticktext=[format_bytes(row.kv_bytes or 0) for row in ticks],
    )
    figure.update_yaxes(title_text=f"best {first.metric}")
    return finish(figure, height=400)


def _add_points(
    figure: go.Figure, rows: Sequence[TrialRow], name: str, look: dict[str, object]
) -> None:
    figure.add_trace(
        go.Scatter(
            x=[row.kv_bytes for row in rows],
            y=[row.value for row in rows],
            error_y=error_bars([row.delta_margin for row in rows], FAINT),
            text=[described(row) for row in rows],
            name=name,
            hovertemplate="%{y:.5g}<br>%{text}<extra></extra>",
            **look,
        )
    )


def comparison_figures(comparison: Comparison, related: Sequence[Comparison]) -> tuple[Titled, ...]:
    """All figures of a comparison: the shared ones, and the masks of each selector.

    Args:
        comparison: the comparison that is shown.
        related: comparisons that differ from it in the budget alone, itself included.
    """
    masks = tuple(masks_figure(study) for study in comparison.studies)
    return shared_figures(comparison, related) + masks


def shared_figures(comparison: Comparison, related: Sequence[Comparison]) -> tuple[Titled, ...]:
    """The figures that belong to no selector in particular; arguments of ``comparison_figures``."""
    return (
        Titled(
            "mqasearch-selectors",
            "Selectors against evaluations",
            "Best mask at the budget so far, against the number of masks scored; probes count, and "
            "so do masks that another selector had scored already.",
            selectors_by_evaluations(comparison),
        ),
        Titled(
            "mqasearch-sensitivity",
            "Layer sensitivity",
            SENSITIVITY_CAPTION,
            layer_sensitivity(comparison),
        ),
        Titled(
            "mqasearch-front",
            "Value against budget",
            f"{_front_words(comparison)} Error bars: 95 % t "
            "intervals of the difference to the original, paired by document. Values are on the "
            "documents that chose the masks, so chance favours them: judge by held-out ones.",
            budget_front(related),
        ),
    )


def _front_words(comparison: Comparison) -> str:
    if comparison.studies[0].has_levels:
        return (
            "The masks that no other one beats in both value and KV bytes, over all selectors and "
            "budgets of this study file. Open symbols: each selector's best mask at a budget."
        )
    return (
        "The best mask known for each number of converted layers, over all selectors and budgets "
        "of this study file. Diamonds: the budgets themselves."
    )


def masks_figure(study: StudyRows) -> Titled:
    """The heatmap of one study with its title."""
    return Titled(
        f"mqasearch-masks-{study.study_id}",
        f"Masks by trial: {study.selector}",
        "Columns are trials, best first. "
        + (
            "The darker, the fewer KV heads; orange: being scored now."
            if study.has_levels
            else "Dark: converted, mask at the budget; pale: converted, mask of another size, "
            "which is a probe, or one that was given up before its last document; orange: being "
            "scored now."
        ),
        masks_by_trial(study),
    )


def _best_so_far(study: StudyRows) -> tuple[list[int], list[float], list[str]]:
    """Each improvement, and where the selector stands now: evaluations, value, mask."""
    points = [(row.evaluations or 0, row) for row in study.improvements]
    if points and len(study.scored) > points[-1][0]:
        points.append((len(study.scored), points[-1][1]))
    return (
        [evaluations for evaluations, _ in points],
        [row.value for _, row in points if row.value is not None],
        [described(row) for _, row in points],
    )


def _add_original(figure: go.Figure, studies: Iterable[StudyRows]) -> None:
    """A dotted line at the original model's value."""
    studies = tuple(studies)
    original = next((study.original for study in studies if study.original), None)
    if original is None:
        return
    end = max(len(study.scored) for study in studies)
    figure.add_trace(
        go.Scatter(
            x=[0, end],
            y=[original.value] * 2,
            name="original model",
            mode="lines",
            line={"color": FAINT, "dash": "dot", "width": 1.5},
            hovertemplate="original model: %{y:.5g}<extra></extra>",
        )
    )


def _best_of_each_size(comparisons: Sequence[Comparison]) -> list[tuple[StudyRows, TrialRow]]:
    """The best mask for each number of converted layers, ascending, with its study."""
    studies = [study for comparison in comparisons for study in comparison.studies]
    rows = [(study, row) for study in studies for row in study.scored]
    found = []
    for n_converted in sorted({row.n_converted for _, row in rows}):
        of_size = [pair for pair in rows if pair[1].n_converted == n_converted]
        chosen = best((row for _, row in of_size), maximize=studies[0].maximize)
        found += [pair for pair in of_size if pair[1] is chosen]
    return found


def _mark_budgets(
    figure: go.Figure, comparisons: Sequence[Comparison], points: Sequence[TrialRow]
) -> None:
    budgets = {comparison.studies[0].space.least for comparison in comparisons}
    marked = [row for row in points if row.n_converted in budgets]
    figure.add_trace(
        go.Scatter(
            x=[row.n_converted for row in marked],
            y=[row.value for row in marked],
            mode="markers",
            marker={"size": 14, "symbol": "diamond-open", "color": COLOURS[1]},
            hoverinfo="skip",
            name="budget",
            showlegend=bool(marked),
        )
    )


def _spread(rows: Sequence[TrialRow], at_most: int) -> list[TrialRow]:
    """At most so many of the rows, evenly spread, the first and the last included."""
    if len(rows) <= at_most:
        return list(rows)
    step = (len(rows) - 1) / (at_most - 1)
    return [rows[round(place * step)] for place in range(at_most)]


def _with_bytes(row: TrialRow) -> str:
    return (
        str(row.n_converted)
        if row.kv_bytes is None
        else (f"{row.n_converted}<br>{format_bytes(row.kv_bytes)}")
    )
