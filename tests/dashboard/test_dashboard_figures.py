"""The figures say what the rows say."""

import json
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from dashboard.sample_studies import (
    DELTA_STDERR,
    HARM,
    N_DOCS,
    N_LAYERS,
    add_study,
    make_trial,
    masks_of,
    probes,
    value_of,
)
from optuna.storages import BaseStorage, InMemoryStorage
from scipy import stats

from mqasearch.dashboard.data import Comparison, StudyRows
from mqasearch.dashboard.figures import (
    budget_front,
    comparison_figures,
    masks_by_trial,
    selectors_by_evaluations,
)
from mqasearch.dashboard.sensitivity_figure import LEAST_MASKS, layer_sensitivity, welch_margin
from mqasearch.dashboard.study_reading import read_comparisons
from mqasearch.dashboard.style import format_bytes
from mqasearch.mask import LayerMask


@pytest.fixture
def comparison(memory: BaseStorage) -> Comparison:
    return read_comparisons(memory)[0]


def _named(comparison: Comparison, selector: str) -> StudyRows:
    return next(study for study in comparison.studies if study.selector == selector)


def _trace(figure: go.Figure, name: str) -> Any:
    return next(trace for trace in figure.data if (trace.name or "").startswith(name))


def _cells(figure: go.Figure) -> dict[str, tuple[int, ...]]:
    """Trial → cells of its column."""
    heatmap = figure.data[0]
    return {x: tuple(row[i] for row in heatmap.z) for i, x in enumerate(heatmap.x)}


def test_each_column_of_the_heatmap_is_a_mask(comparison: Comparison) -> None:
    for study in comparison.studies:
        cells = _cells(masks_by_trial(study))
        shown = [row for row in study.trials if row.state != "invalid"]
        assert set(cells) == {str(row.number) for row in shown}
        for row in shown:
            column = cells[str(row.number)]
            assert "".join("1" if cell else "0" for cell in column) == row.mask
            running, at_budget = row.state == "running", study.is_at_budget(row)
            assert set(column) <= {0, 3 if running else 2 if at_budget else 1}


def test_columns_are_sorted_and_the_button_orders_them_by_trial(comparison: Comparison) -> None:
    study = _named(comparison, "tpe")
    figure = masks_by_trial(study)
    axis = figure.layout.xaxis
    assert axis.type == "category"
    assert (axis.categoryorder, axis.categoryarray) == ("array", figure.data[0].x)
    by_number = {str(row.number): row for row in study.trials}
    ranked = [by_number[x] for x in axis.categoryarray]
    losses = [study.loss(row) for row in ranked if study.is_at_budget(row) and row.value]
    assert losses == sorted(losses)
    assert ranked[-1].n_converted == 0
    buttons = figure.layout.updatemenus[0].buttons
    assert [button.args[0]["xaxis.categoryarray"] for button in buttons] == [
        list(axis.categoryarray),
        sorted(axis.categoryarray, key=int),
    ]


def test_a_limited_heatmap_keeps_the_best(comparison: Comparison) -> None:
    study = _named(comparison, "tpe")
    assert masks_by_trial(study, limit=2).data[0].x == masks_by_trial(study).data[0].x[:2]


def test_best_so_far_only_ever_improves_and_ends_with_the_search(comparison: Comparison) -> None:
    figure = selectors_by_evaluations(comparison)
    for study in comparison.studies:
        line = _trace(figure, study.selector)
        assert study.best is not None
        assert list(line.y) == sorted(line.y, reverse=True)
        assert list(line.x) == sorted(line.x)
        assert line.x[-1] == len(study.scored)
        assert line.y[-1] == study.best.value
        # a probe never counts as a best mask, however good it is
        first = next(row for row in study.scored if study.is_at_budget(row))
        assert (line.x[0], line.y[0]) == (first.evaluations, first.value)
    assert set(_trace(figure, "original").y) == {1.0}


def test_where_larger_is_better_the_best_is_the_largest() -> None:
    storage = InMemoryStorage()
    masks = [*probes(), *masks_of([0, 1, 2], [7, 8, 9])]
    trials = [make_trial(mask, 3, i, sign=-1) for i, mask in enumerate(masks)]
    add_study(storage, "s", trials, direction="maximize")
    (comparison,) = read_comparisons(storage)
    line = _trace(selectors_by_evaluations(comparison), "s")
    assert line.y[-1] == max(-value_of(mask) for mask in masks[-2:])
    # what a layer adds is a loss, whatever the sign of the objective
    assert list(layer_sensitivity(comparison).data[0].y) == pytest.approx(list(HARM))


def test_bars_are_the_loss_of_each_layer_alone(comparison: Comparison) -> None:
    bars = layer_sensitivity(comparison).data[0]
    assert list(bars.x) == [str(layer) for layer in range(N_LAYERS)]
    assert list(bars.y) == pytest.approx(list(HARM))


def test_points_compare_masks_with_and_without_a_layer(comparison: Comparison) -> None:
    """Against numpy, over distinct masks: a mask that two selectors scored counts once."""
    masks = {
        row.mask: value_of(LayerMask.parse(row.mask))
        for study in comparison.studies
        for row in study.scored
        if row.n_converted == 3
    }
    points = _trace(layer_sensitivity(comparison), "with")
    found = dict(zip(points.x, zip(points.y, points.error_y.array, strict=True), strict=True))
    intervals = 0
    for layer in range(N_LAYERS):
        sides = [[v for m, v in masks.items() if m[layer] == flag] for flag in "10"]
        if min(map(len, sides)) < 2:
            assert str(layer) not in found
            continue
        with_it, without = map(np.array, sides)
        difference, margin = found[str(layer)]
        assert difference == pytest.approx(with_it.mean() - without.mean())
        if min(map(len, sides)) < LEAST_MASKS:
            assert margin is None
            continue
        intervals += 1
        welch = stats.ttest_ind(with_it, without, equal_var=False).confidence_interval(0.95)
        assert (difference - margin, difference + margin) == pytest.approx(welch)
    assert intervals
    assert len(found) > intervals


def test_welchs_interval_is_right_for_few_masks() -> None:
    """It covers the true difference of 3 and 4 masks in 95 % of draws; ±1.96 errors in 86 %."""
    rng = np.random.default_rng(0)
    inside, narrow = [], []
    for _ in range(4000):
        a, b = rng.normal(scale=2, size=3), rng.normal(size=4)
        difference, error = a.mean() - b.mean(), (a.var(ddof=1) / 3 + b.var(ddof=1) / 4) ** 0.5
        inside.append(abs(difference) <= welch_margin(list(a), list(b)))
        narrow.append(abs(difference) <= 1.96 * error)
    assert 0.93 < np.mean(inside) < 0.97
    assert np.mean(narrow) < 0.90


def test_masks_that_are_all_equal_have_no_spread() -> None:
    assert welch_margin([1.0, 1.0], [2.0, 2.0, 2.0]) == 0.0


def test_bars_have_the_paired_interval_of_their_difference(comparison: Comparison) -> None:
    bars = layer_sensitivity(comparison).data[0]
    margin = stats.t.ppf(0.975, N_DOCS - 1) * DELTA_STDERR
    assert list(bars.error_y.array) == pytest.approx([margin] * N_LAYERS)
    front = budget_front([comparison]).data[0]
    expected = [margin if x else 0.0 for x in front.x]
    assert list(front.error_y.array) == pytest.approx(expected)


def test_of_two_scores_of_a_mask_the_figures_take_the_full_one() -> None:
    """One selector gave the mask up, another one scored it in full."""
    alone = LayerMask.of([0], N_LAYERS)
    for order in (1, -1):
        storage = InMemoryStorage()
        lost = make_trial(alone, 3, value=0.2, given_up=8)
        for name, trial in [("a", lost), ("b", make_trial(alone, 3))][::order]:
            add_study(storage, name, [trial])
        (comparison,) = read_comparisons(storage)
        assert layer_sensitivity(comparison).data[0].y[0] == pytest.approx(HARM[0])
        assert list(budget_front([comparison]).data[0].y) == [value_of(alone)]


def test_a_mask_that_was_given_up_is_pale_and_behind_those_scored_in_full() -> None:
    storage = InMemoryStorage()
    good, lost = masks_of([7, 8, 9], [0, 1, 2])
    trials = [make_trial(lost, 3, value=0.1, given_up=8), make_trial(good, 3, 1)]
    add_study(storage, "s", trials)
    (comparison,) = read_comparisons(storage)
    figure = masks_by_trial(comparison.studies[0])
    assert list(figure.data[0].x) == ["1", "0"]
    assert set(_cells(figure)["0"]) == {0, 1}
    assert list(_trace(figure, "given up").x) == ["0"]


def test_the_front_is_the_best_for_each_number_of_layers(comparison: Comparison) -> None:
    line = budget_front([comparison]).data[0]
    best: dict[int, float] = {}
    for row in (row for study in comparison.studies for row in study.scored):
        assert row.value is not None
        best[row.n_converted] = min(best.get(row.n_converted, row.value), row.value)
    assert dict(zip(line.x, line.y, strict=True)) == best
    assert list(_trace(budget_front([comparison]), "budget").x) == [3]


def test_a_study_without_trials_has_figures_too() -> None:
    storage = InMemoryStorage()
    add_study(storage, "s", [])
    (comparison,) = read_comparisons(storage)
    for titled in comparison_figures(comparison, [comparison]):
        json.loads(titled.figure.to_json())


def test_figures_travel_light(comparison: Comparison) -> None:
    """No packed arrays (plotly.js 2.35 draws these, too), no template, valid and distinct ids."""
    figures = comparison_figures(comparison, [comparison])
    assert len({titled.key for titled in figures}) == len(figures) == 6
    for titled in figures:
        assert titled.key.replace("-", "").isalnum()
        text = titled.figure.to_json()
        assert "bdata" not in text
        assert len(text) < 10_000
        axes = json.loads(text)["layout"]
        assert all("#" not in str(axes[name].get("title")) for name in ("xaxis", "yaxis"))


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (23_040, "23.0 kB"), (5_000_000, "5.0 MB")]
)
def test_bytes(count: int, text: str) -> None:
    assert format_bytes(count) == text
