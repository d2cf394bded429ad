"""The heatmap of masks: which layers each trial of one study converts."""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from mqasearch.dashboard.data import StudyRows, TrialRow
from mqasearch.dashboard.style import described, finish
from mqasearch.mask import LayerMask
from mqasearch.study import ranked

MAX_COLUMNS = 150
"""Most trials of the heatmap: with more, columns are too thin (a pixel or two) to tell apart."""

SHADES = KEPT, PALE, AT_BUDGET, RUNNING = "#f1f3f6", "#a6cbe3", "#0b5394", "#f0b429"
"""Colours of a cell, by the number that stands for them in the heatmap."""

_BLUES = ("#d3e4f0", "#a6cbe3", "#74acd1", "#468cbd", "#246da6", AT_BUDGET)
"""Colours of a cell of several levels; the deepest level has the last one."""


def masks_by_trial(study: StudyRows, limit: int = MAX_COLUMNS) -> go.Figure:
    """Layer × trial: which layers each mask converts, best mask first, with its value above it.

    Masks at the budget are dark, probes and masks that were given up are pale, running ones orange.
    If there are several levels, a cell is the darker the fewer KV heads its layer has. A button
    orders the same columns by trial number.

    Args:
        study: one selector's rows.
        limit: largest number of columns; the best masks at the budget are kept.
    """
    rows = _best_first(study)[:limit]
    by_value = [str(row.number) for row in rows]
    by_number = [str(number) for number in sorted(row.number for row in rows)]
    figure = go.Figure([_heatmap(study, rows), *_value_traces(study, rows)])
    # Both panels have one x axis: plotly.js does not reorder the categories of matching axes.
    figure.update_xaxes(
        title_text="trial",
        type="category",
        categoryorder="array",
        categoryarray=by_value,
        nticks=30,
        showgrid=False,
    )
    finish(figure, height=max(420, 190 + 13 * study.n_layers))
    figure.update_layout(
        yaxis={
            "title": {"text": "layer"},
            "type": "category",
            "autorange": "reversed",
            "showgrid": False,
            "domain": [0, 0.7],
        },
        yaxis2={"title": {"text": "value"}, "nticks": 5, "domain": [0.73, 1]},
        updatemenus=[_order_buttons({"best first": by_value, "by trial": by_number})],
    )
    return figure


def _best_first(study: StudyRows) -> list[TrialRow]:
    """Masks at the budget by loss, then running ones, then given up ones and probes, the original
    last.
    """
    shown = [row for row in study.trials if row.value is not None or row.state == "running"]

    candidates = ranked((row for row in shown if study.is_at_budget(row)), maximize=study.maximize)
    places = {row.number: place for place, row in enumerate(candidates)}

    def rank(row: TrialRow) -> tuple[int, float, int]:
        if row.number in places:
            return 0, places[row.number], row.number
        if row.state == "running":
            return 1, 0.0, row.number
        place = 2 if study.is_at_budget(row) else 3 if row.n_converted else 4
        return place, study.loss(row), row.number

    return sorted(shown, key=rank)


def _heatmap(study: StudyRows, rows: Sequence[TrialRow]) -> go.Heatmap:
    shades = [_shades(study, row) for row in rows]
    colours = _colours(study)
    return go.Heatmap(
        x=[str(row.number) for row in rows],
        y=[str(layer) for layer in range(study.n_layers)],
        z=[[shade[layer] for shade in shades] for layer in range(study.n_layers)],
        zmin=0,
        zmax=len(colours) - 1,
        colorscale=[(place / (len(colours) - 1), colour) for place, colour in enumerate(colours)],
        showscale=False,
        xgap=1 if len(rows) <= 80 else 0,
        ygap=1,
        hovertemplate="trial %{x}, layer %{y}<extra></extra>",
    )


def _colours(study: StudyRows) -> tuple[str, ...]:
    """The colours of the cells, by the number that stands for them."""
    if not study.has_levels:
        return SHADES
    n = study.space.n_levels
    blues = (_BLUES[round(level * (len(_BLUES) - 1) / n)] for level in range(1, n + 1))
    return (KEPT, *blues, RUNNING)


def _shades(study: StudyRows, row: TrialRow) -> list[int]:
    """Each layer's place in ``_colours``."""
    levels = LayerMask.parse(row.mask).levels
    if row.state == "running":
        return [len(_colours(study)) - 1 if level else 0 for level in levels]
    if study.has_levels:
        return list(levels)
    shade = 2 if study.is_at_budget(row) and row.given_up is None else 1
    return [shade if level else 0 for level in levels]


def _value_traces(study: StudyRows, rows: Sequence[TrialRow]) -> list[go.Scatter]:
    scored = [row for row in rows if row.value is not None]
    groups = {
        "mask at the budget": [r for r in scored if study.is_at_budget(r) and r.given_up is None],
        "given up": [r for r in scored if study.is_at_budget(r) and r.given_up is not None],
        "probe": [r for r in scored if not study.is_at_budget(r)],
    }
    looks = {
        "mask at the budget": {"color": AT_BUDGET},
        "given up": {"color": AT_BUDGET, "symbol": "x-thin-open"},
        "probe": {"color": PALE},
    }
    traces = [
        go.Scatter(
            x=[str(row.number) for row in members],
            y=[row.value for row in members],
            yaxis="y2",
            text=[described(row) for row in members],
            name=name,
            mode="markers",
            marker={"size": 6, **looks[name]},
            showlegend=bool(members),
            hovertemplate="%{y:.5g}<br>%{text}<extra></extra>",
        )
        for name, members in groups.items()
    ]
    # the heatmap has no legend of its own: its third colour is explained by a square
    traces.append(
        go.Scatter(
            x=[None],
            y=[None],
            yaxis="y2",
            name="being scored",
            mode="markers",
            marker={"size": 9, "symbol": "square", "color": RUNNING},
        )
    )
    return traces


def _order_buttons(orders: Mapping[str, list[str]]) -> dict[str, object]:
    return {
        "type": "buttons",
        "direction": "right",
        "x": 0,
        "xanchor": "left",
        "y": 1.02,
        "yanchor": "bottom",
        "pad": {"t": 0, "b": 4},
        "font": {"size": 11},
        "buttons": [
            {
                "label": label,
                "method": "relayout",
                "args": [{"xaxis.categoryarray": order}],
            }
            for label, order in orders.items()
        ],
    }
