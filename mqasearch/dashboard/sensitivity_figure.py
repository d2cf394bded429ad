"""The figure of layers: the loss of each layer alone, and of masks with and without it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, variance

import plotly.graph_objects as go
from scipy.stats import t

from mqasearch.dashboard.data import Comparison, StudyRows, TrialRow
from mqasearch.dashboard.style import COLOURS, FAINT, error_bars, finish

BAR_COLOURS = (COLOURS[0], COLOURS[5], COLOURS[2], COLOURS[4], COLOURS[6])
"""Of the levels, the first one first."""

LEAST_MASKS = 3
"""Fewest masks on either side of a comparison that gets an interval: with two, it is too wide to
draw."""

SENSITIVITY_CAPTION = (
    "Bars: loss that a layer adds when it is the only one converted; error bars: 95 % t intervals "
    "of the difference to the original, paired by document. Points: masks at the budget with the "
    f"layer against those without it, with Welch's 95 % t intervals from {LEAST_MASKS} masks on "
    "either side; selectors choose their masks, so points describe what was tried and do not "
    "prove a cause."
)


@dataclass(frozen=True, slots=True)
class Contrast:
    """Masks at the budget with a layer against those without it.

    Attributes:
        difference: difference of the mean losses.
        margin: half of its 95 % interval; None if one side has fewer than ``LEAST_MASKS``.
        counts: numbers of masks on both sides, in words.
    """

    difference: float
    margin: float | None
    counts: str


def layer_sensitivity(comparison: Comparison) -> go.Figure:
    """Per layer: the loss it adds alone, and masks at the budget with it against those without it.

    Bars: loss of the mask with that layer alone − the original's, with its paired 95 % interval.
    Points: mean loss of the masks at the budget that convert the layer − mean of those that do not,
    if both sides have two masks or more. Selectors choose their masks, so the points describe what
    was tried; they do not estimate what a layer causes.
    """
    first = comparison.studies[0]
    layers = [str(layer) for layer in range(first.n_layers)]
    figure = go.Figure([_bars(comparison, level) for level in range(1, first.space.n_levels + 1)])
    contrasts = _with_against_without(comparison)
    figure.add_trace(
        go.Scatter(
            x=[str(layer) for layer in contrasts],
            y=[contrast.difference for contrast in contrasts.values()],
            error_y=error_bars([each.margin for each in contrasts.values()], COLOURS[1]),
            text=[contrast.counts for contrast in contrasts.values()],
            name=f"with − without, masks of {first.budget}",
            mode="markers",
            marker={"color": COLOURS[1], "size": 7, "symbol": "diamond"},
            hovertemplate="layer %{x}, with − without: %{y:+.5g}<br>%{text}<extra></extra>",
        )
    )
    figure.update_xaxes(
        title_text="layer",
        type="category",
        categoryorder="array",
        categoryarray=layers,
        showgrid=False,
    )
    figure.update_yaxes(title_text=f"loss added ({first.metric})", zerolinecolor=FAINT)
    return finish(figure, height=400)


def _bars(comparison: Comparison, level: int) -> go.Bar:
    """The loss that each layer adds alone at one level."""
    first = comparison.studies[0]
    alone = _losses_alone(comparison, level)
    losses = [alone.get(layer, (None, None)) for layer in range(first.n_layers)]
    number = sorted(first.numbers, reverse=True)[level - 1]
    return go.Bar(
        x=[str(layer) for layer in range(first.n_layers)],
        y=[loss for loss, _ in losses],
        error_y=error_bars([margin for _, margin in losses], COLOURS[7]),
        text=[_interval(*loss) for loss in losses],
        textposition="none",
        name=f"this layer alone, {number} KV heads" if first.has_levels else "this layer alone",
        marker={"color": BAR_COLOURS[(level - 1) % len(BAR_COLOURS)]},
        hovertemplate="layer %{x} alone: %{text}<extra></extra>",
    )


def welch_margin(a: Sequence[float], b: Sequence[float]) -> float:
    """Half the 95 % interval of mean(a) − mean(b), variances unequal (Welch 1947).

    Args:
        a: two values or more.
        b: two values or more.
    """
    parts = [(variance(side) / len(side), len(side) - 1) for side in (a, b)]
    square = sum(part for part, _ in parts)
    if square == 0:
        return 0.0
    freedom = square**2 / sum(part**2 / n for part, n in parts)
    return float(t.ppf(0.975, freedom)) * math.sqrt(square)


def _interval(loss: float | None, margin: float | None) -> str:
    if loss is None:
        return ""
    return f"{loss:+.5g}" + ("" if margin is None else f" ± {margin:.2g} (95 %)")


def _distinct(comparison: Comparison) -> dict[str, tuple[StudyRows, TrialRow]]:
    """One row per scored mask; selectors that met the same mask have the same score of it.

    A mask that one selector gave up may have been scored in full for another one.
    """
    rows = [(study, row) for study in comparison.studies for row in study.scored]
    rows.sort(key=lambda pair: pair[1].given_up is None)  # the last row of each mask is kept
    return {row.mask: (study, row) for study, row in rows}


def _losses_alone(
    comparison: Comparison, level: int
) -> dict[int, tuple[float | None, float | None]]:
    """Layer → loss of the mask with that layer alone − the original's, and half its interval."""
    return {
        row.layers[0]: (-row.delta if study.maximize else row.delta, row.delta_margin)
        for study, row in _distinct(comparison).values()
        if row.n_converted == 1 and str(level) in row.mask and row.delta is not None
    }


def _with_against_without(comparison: Comparison) -> dict[int, Contrast]:
    """Layer → masks with it against masks without it, if there are two or more of both."""
    masks = [
        (row.mask, study.loss(row))
        for study, row in _distinct(comparison).values()
        if study.is_at_budget(row)
    ]
    found = {}
    for layer in range(comparison.studies[0].n_layers):
        converted, kept = (
            [loss for mask, loss in masks if (mask[layer] != "0") == flag] for flag in (True, False)
        )
        least = min(len(converted), len(kept))
        if least < 2:
            continue
        margin = welch_margin(converted, kept) if least >= LEAST_MASKS else None
        counts = f"{len(converted)} masks with it, {len(kept)} without"
        found[layer] = Contrast(fmean(converted) - fmean(kept), margin, counts)
    return found
