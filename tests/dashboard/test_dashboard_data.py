"""Rows as the figures need them, from studies as workers leave them."""

import json
import math
from pathlib import Path

import optuna
import pytest
from dashboard.sample_studies import (
    DELTA_STDERR,
    HARM,
    N_DOCS,
    N_LAYERS,
    SPEC,
    STDERR,
    add_study,
    make_trial,
    masks_of,
    probes,
    value_of,
)
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import TrialState
from scipy.stats import t
from studies_on_fake import run_study, spec_of, storage_in, studies_of

from mqasearch.dashboard.data import StudyRows, siblings
from mqasearch.dashboard.figures import comparison_figures
from mqasearch.dashboard.pages import comparison_page, index_page
from mqasearch.dashboard.study_reading import read_comparisons
from mqasearch.mask import LayerMask
from mqasearch.scoring import FakeScorer
from mqasearch.statistics import Estimate
from mqasearch.study import compare


def _study(storage: BaseStorage, selector: str = "s") -> StudyRows:
    studies = [study for one in read_comparisons(storage) for study in one.studies]
    return next(study for study in studies if study.selector == selector)


def test_a_comparison_is_its_selectors_and_nothing_else(memory: BaseStorage) -> None:
    (comparison,) = read_comparisons(memory)
    assert comparison.name == "demo"
    assert [study.selector for study in comparison.studies] == ["sensitivity", "alternating", "tpe"]
    assert {study.metric for study in comparison.studies} == {"bits_per_byte on hellaswag"}


def test_rows_are_the_trials_whose_mask_is_known(memory: BaseStorage) -> None:
    study = _study(memory, "tpe")
    assert [row.state for row in study.trials] == (
        ["pruned"] + ["complete"] * 6 + ["running", "invalid"]  # the waiting one has no mask yet
    )
    for row in study.scored:
        mask = LayerMask.parse(row.mask)
        assert row.value == pytest.approx(value_of(mask))
        assert row.delta == pytest.approx(value_of(mask) - 1)
        assert (row.layers, row.n_converted) == (mask.layers, mask.n_converted)
    assert all(row.value is None for row in study.trials if row.state in ("running", "invalid"))


def test_the_best_is_at_the_budget_however_good_a_probe_is(memory: BaseStorage) -> None:
    (comparison,) = read_comparisons(memory)
    assert comparison.best is not None
    study, row = comparison.best
    assert study.is_at_budget(row)
    assert row.value == min(
        value_of(LayerMask.parse(r.mask))
        for s in comparison.studies
        for r in s.scored
        if r.n_converted == 3
    )


def test_evaluations_count_in_the_order_in_which_trials_ended() -> None:
    storage = InMemoryStorage()
    masks = masks_of([0, 1, 2], [7, 8, 9], [3, 4, 5])
    places = [2, 0, 1]
    add_study(storage, "s", [make_trial(m, 3, p) for m, p in zip(masks, places, strict=True)])
    study = _study(storage)
    assert [row.evaluations for row in study.trials] == [3, 1, 2]
    assert [row.number for row in study.scored] == [1, 2, 0]


def test_where_larger_is_better_loss_turns_the_sign() -> None:
    storage = InMemoryStorage()
    trials = [make_trial(mask, 3, i, sign=-1) for i, mask in enumerate(masks_of([0, 1, 2], [7, 8]))]
    add_study(storage, "s", trials, direction="maximize")
    study = _study(storage)
    assert study.maximize
    assert [study.loss(row) for row in study.scored] == [-(row.value or 0) for row in study.scored]


def test_a_trial_without_facts_still_has_its_difference_to_the_original() -> None:
    storage = InMemoryStorage()
    trials = [make_trial(mask, 3, i) for i, mask in enumerate(probes())]
    for trial in trials:
        trial.user_attrs.pop("mqasearch:facts", None)
    add_study(storage, "s", trials)
    deltas = [row.delta for row in _study(storage).trials]
    assert deltas == pytest.approx([0, *HARM])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_no_value(value: float) -> None:
    storage = InMemoryStorage()
    trial = make_trial(LayerMask.of([0], N_LAYERS), 3, value=value, state=TrialState.PRUNED)
    add_study(storage, "s", [trial])
    (row,) = _study(storage).trials
    assert (row.value, row.delta, row.evaluations) == (None, None, None)


@pytest.mark.parametrize(
    ("where", "junk"),
    [
        ("mqasearch:study", "text"),
        ("mqasearch:study", {"comparison": "demo"}),
        ("mqasearch:study", {"comparison": 1, "selector": "s", "n_converted": 3, "n_layers": 10}),
        ("mqasearch:confirmation", {"tasks": {"t": {"acc": {"delta": {"ci95": [1]}}, "x": 3}}}),
        ("mqasearch:confirmation", [1, 2]),
    ],
)
def test_attributes_of_another_version_do_not_take_the_page_down(where: str, junk: object) -> None:
    storage = InMemoryStorage()
    study = add_study(storage, "s", [make_trial(probes()[0], 3)])
    study.set_user_attr(where, junk)
    for one in read_comparisons(storage):
        assert one.studies[0].confirmed == ()


def test_masks_of_another_length_are_left_out() -> None:
    storage = InMemoryStorage()
    study = add_study(storage, "s", [make_trial(probes()[0], 3)])
    for mask in ("0" * (N_LAYERS + 1), "x" * N_LAYERS, 7):
        trial = optuna.trial.create_trial(value=1.0, user_attrs={"mqasearch:mask": mask})
        study.add_trial(trial)
    assert len(_study(storage).trials) == 1


def test_held_out_results() -> None:
    storage = InMemoryStorage()
    study = add_study(storage, "s", [make_trial(masks_of([7, 8, 9])[0], 3)])
    delta = {"value": -0.03, "ci95": [-0.06, 0.01], "p_value": 0.1}
    row = {"value": 0.4, "stderr": 0.02, "n_docs": 400, "original": 0.43, "delta": delta}
    tasks = {"hellaswag": {"acc": row, "odd": {"value": 1}}}
    study.set_user_attr("mqasearch:confirmation", {"mask": "0000000111", "tasks": tasks})
    (confirmed,) = _study(storage).confirmed
    assert (confirmed.stderr, confirmed.n_docs) == (0.02, 400)
    assert (confirmed.task, confirmed.metric) == ("hellaswag", "acc")
    assert (confirmed.value, confirmed.original, confirmed.delta) == (0.4, 0.43, -0.03)
    assert (confirmed.low, confirmed.high) == (-0.06, 0.01)


def test_a_held_out_perplexity_has_no_paired_difference() -> None:
    storage = InMemoryStorage()
    spec = {**SPEC, "tasks": [{"name": "wikitext", "metric": "word_perplexity", "weight": 1.0}]}
    study = add_study(storage, "s", [make_trial(masks_of([7, 8, 9])[0], 3)], spec=spec)
    row = {"value": 21.5, "stderr": 1.0, "n_docs": 62, "original": 20.0}
    study.set_user_attr(
        "mqasearch:confirmation",
        {"mask": "0000000111", "tasks": {"wikitext": {"word_perplexity": row}}},
    )
    (confirmed,) = _study(storage).confirmed
    assert (confirmed.delta, confirmed.low, confirmed.high) == (None, None, None)
    found = _study(storage).held_out
    assert found is not None
    assert (found.value, found.stderr, found.n_docs) == (21.5, 1.0, {"wikitext": 62})


def test_a_held_out_value_belongs_to_the_mask_that_was_confirmed() -> None:
    storage = InMemoryStorage()
    study = add_study(storage, "s", [make_trial(masks_of([7, 8, 9])[0], 3)])
    row = {"value": 1.2, "stderr": 0.01, "n_docs": 400, "original": 1.0}
    tasks = {"hellaswag": {"bits_per_byte": row}}
    study.set_user_attr("mqasearch:confirmation", {"mask": "0000000111", "tasks": tasks})
    assert _study(storage).held_out is not None
    study.add_trial(make_trial(masks_of([5, 7, 9])[0], 3, 1, value=0.5))
    assert _study(storage).held_out is None


def test_rows_have_their_standard_errors(memory: BaseStorage) -> None:
    for row in _study(memory, "tpe").scored:
        assert (row.stderr, row.n_docs) == (STDERR, (N_DOCS,))
        assert row.delta_stderr == (DELTA_STDERR if row.n_converted else 0.0)
        assert row.delta_margin == pytest.approx(t.ppf(0.975, N_DOCS - 1) * row.delta_stderr)


def test_trials_of_before_errors_were_kept_still_show() -> None:
    storage = InMemoryStorage()
    trials = [make_trial(mask, 3, i) for i, mask in enumerate([*probes(), *masks_of([7, 8, 9])])]
    for trial in trials:
        for key in ("given_up", "stderr", "delta_stderr", "n_docs"):
            del trial.user_attrs["mqasearch:facts"][key]
    add_study(storage, "s", trials)
    (comparison,) = read_comparisons(storage)
    study = comparison.studies[0]
    assert study.best is not None
    assert (study.best.stderr, study.best.delta_margin, study.best.n_docs) == (None, None, ())
    page = comparison_page(comparison).decode()
    assert f"<td>{study.best.value:.4f}</td>" in page
    assert "n=" not in page
    for titled in comparison_figures(comparison, [comparison]):
        for trace in json.loads(titled.figure.to_json())["data"]:
            assert trace.get("error_y", {}).get("visible") in (None, False)


def test_a_mask_that_was_given_up_is_no_best_however_good_its_estimate() -> None:
    storage = InMemoryStorage()
    good, lost = masks_of([7, 8, 9], [0, 1, 2])
    trials = [make_trial(good, 3), make_trial(lost, 3, 1, value=0.1, given_up=8)]
    add_study(storage, "s", trials)
    (comparison,) = read_comparisons(storage)
    study = comparison.studies[0]
    assert study.best is not None
    assert study.best.mask == str(good)
    page = comparison_page(comparison).decode()
    assert str(lost) not in page
    assert "Masks at the budget: 1" in page


def test_siblings_differ_in_the_budget_alone() -> None:
    storage = InMemoryStorage()
    for name, budget, seed in (("a-n2", 2, 0), ("a-n5", 5, 0), ("b", 2, 1)):
        spec = {**SPEC, "name": name, "budget": [{"n_layers": budget}], "seed": seed}
        add_study(storage, "s", [], comparison=name, n_converted=budget, spec=spec)
    comparisons = read_comparisons(storage)
    assert [one.name for one in comparisons] == ["b", "a-n5", "a-n2"]  # the newest first
    related = {one.name: {o.name for o in siblings(one, comparisons)} for one in comparisons}
    assert related == {"a-n2": {"a-n2", "a-n5"}, "a-n5": {"a-n2", "a-n5"}, "b": {"b"}}


@pytest.mark.long
def test_the_rows_are_what_compare_says_of_studies_that_workers_made(tmp_path: Path) -> None:
    storage = storage_in(tmp_path)
    tasks = [{"name": "hellaswag", "metric": "bits_per_byte"}]
    spec = spec_of(enqueue={"two": [1, 4], "one": [0]}, tasks=tasks)
    run_study(storage, spec, FakeScorer(6))
    (comparison,) = read_comparisons(storage.optuna)
    assert {study.space.least for study in comparison.studies} == {3}  # the budget of all
    by_selector = {study.selector: study for study in comparison.studies}
    named = {row.label: row.layers for row in by_selector.pop("enqueued").scored}
    assert named == {"original": (), "two": (1, 4), "one": (0,)}
    told = {row.selector: row for row in compare(studies_of(storage))}
    for selector, study in by_selector.items():
        assert study.best is not None
        row = told[selector]
        assert (study.best.mask, study.best.value) == (row.mask, row.value)
        assert (study.best.delta, study.best.kv_bytes) == (row.delta, row.kv_bytes_per_token)
        assert len(study.scored) == row.n_trials
        held_out = {(one.task, one.metric): one.delta for one in study.confirmed}
        assert held_out == {
            (task, metric): result["delta"]["value"]
            for task, metrics in row.confirmed.items()
            for metric, result in metrics.items()
        }
        assert held_out
        assert study.held_out == row.held_out
        assert (study.best.stderr, study.best.delta_stderr) == (row.stderr, row.delta_stderr)
        assert study.best.n_docs == tuple(row.n_docs.values())
    page = comparison_page(comparison).decode()
    assert "best, search (n=40)" in page
    for row in (row for row in told.values() if row.layers):
        assert row.value is not None
        assert row.delta is not None
        assert str(Estimate(row.value, row.stderr)) in page
        assert Estimate(row.delta, row.delta_stderr).text(signed=True) in page
        if row.held_out is not None:
            shown = f"<td>{Estimate(row.held_out.value, row.held_out.stderr)} (n=80)</td>"
            assert shown in page
    _, best = comparison.best or pytest.fail("there is a best mask")
    index = index_page([comparison]).decode()
    assert f"<td>{best.estimate}</td>" in index
    assert "(n=80)</td>" in index
    assert "<td>two</td><td>1, 4</td>" in page
    storage.close()
