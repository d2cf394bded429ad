"""How many layers can be converted within a tolerance: chosen blind, tested in order, told once."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from studies_on_fake import run_study, spec_of, studies_of

from mqasearch.creation import create_studies
from mqasearch.export import export, write_masks
from mqasearch.mask import LayerMask
from mqasearch.record import CONFIRMATION_KEY, Storage, confirmation, set_confirmation
from mqasearch.score import Documents, TaskSpec
from mqasearch.scoring import FakeScorer
from mqasearch.statistics import NonInferiority, paired_difference
from mqasearch.study.comparison_rows import best_trial
from mqasearch.study.verdict_words import (
    as_data,
    conclusion,
    difference_in_words,
    sentence,
    size_in_words,
)
from mqasearch.study.verdicts import Outcome, Verdict, verdict
from mqasearch.tolerance import ToleranceEntry

TOLERANCE = {"metric": "acc_norm", "points": 5.0}
POINT = ToleranceEntry(metric="acc_norm", points=1.0)


def tolerant(tolerance: Any = TOLERANCE, **changes: Any) -> Any:
    documents = {"search": 40, "confirmation": 400}
    data = {"budget": [1, 3], "documents": documents, "selectors": ["sensitivity", "random"]}
    return spec_of(**data | {"tolerance": tolerance, "n_trials": 4} | changes)


def found(storage: Storage) -> Verdict:
    told = verdict(studies_of(storage))
    assert told is not None
    return told


def tell(storage: Storage, comparison: str, metric: str, **delta: Any) -> None:
    """Write what the held-out documents say of a comparison's masks."""
    for study in studies_of(storage):
        if study.study_name.startswith(f"{comparison}."):
            row = confirmation(study.user_attrs)
            assert row is not None
            row["tasks"]["hellaswag"][metric]["delta"] |= delta
            set_confirmation(study, row)


def test_sizes_are_tested_in_order_until_the_first_that_fails(storage: Storage) -> None:
    run_study(storage, tolerant(budget=[7, 1, 5, 3], selectors=["sensitivity"]), FakeScorer(8))
    for size, low in {"s-n1": -0.01, "s-n3": -0.04, "s-n5": -0.06, "s-n7": -0.01}.items():
        tell(storage, size, "acc_norm", value=low / 2, ci90=[low, 0.01])
    told = found(storage)
    assert [size.n_converted for size in told.sizes] == [1, 3, 5, 7]
    assert [s.result for s in told.sizes] == ["within", "within", "not shown", "not tested"]
    assert told.chosen is told.sizes[1]
    assert sentence(told) == (
        f"3 of 8 layers, {100 * told.sizes[1].kv_bytes_saved:.0f} % less KV cache: acc_norm −2.0 "
        "points [90 % CI −4.0, +1.0] on 400 held-out documents: within 5 points."
    )
    assert "within" not in size_in_words(told.sizes[3])


def test_each_size_takes_the_mask_that_the_search_calls_best_not_the_held_out_documents(
    storage: Storage,
) -> None:
    run_study(storage, tolerant(), FakeScorer(8))
    before = [(size.selector, size.trial_number) for size in found(storage).sizes]
    for study in studies_of(storage):
        best = best_trial(study)
        assert best is not None
        is_chosen = any(size.mask == best.facts.mask for size in found(storage).sizes)
        row = confirmation(study.user_attrs)
        assert row is not None
        row["tasks"]["hellaswag"]["acc_norm"]["delta"]["value"] = -0.9 if is_chosen else 0.9
        set_confirmation(study, row)
    assert [(size.selector, size.trial_number) for size in found(storage).sizes] == before
    for size in found(storage).sizes:
        bests = [b for s in studies_of(storage) if (b := best_trial(s)) is not None]
        same_size = [b for b in bests if b.facts.n_converted == size.n_converted]
        assert min(b.facts.value for b in same_size) == next(
            b.facts.value for b in same_size if b.facts.mask == size.mask
        )


def test_figures_are_those_of_the_masks_held_out_documents(storage: Storage) -> None:
    scorer = FakeScorer(8)
    run_study(storage, tolerant([TOLERANCE, {"metric": "bits_per_byte", "points": 4}]), scorer)
    task, documents = TaskSpec("hellaswag"), Documents("confirmation", 400)
    original = scorer.score(scorer.shape.original, task, documents).documents
    for size in found(storage).sizes:
        kv_heads = LayerMask.parse(size.mask).kv_heads(scorer.shape)
        mask = scorer.score(kv_heads, task, documents).documents
        for test, sign in zip(size.tests, (-1, 1), strict=True):
            metric = test.tolerance.metric
            expected = paired_difference(mask[metric], original[metric])
            assert test.difference == pytest.approx(100 * expected.value)
            assert test.interval == pytest.approx([100 * end for end in expected.ci90])
            assert test.loss.loss == pytest.approx(sign * expected.value)
            assert test.loss.n_docs == 400
        saved = scorer.shape.kv_bytes_per_token(kv_heads) / scorer.shape.kv_bytes_per_token(
            scorer.shape.original
        )
        assert size.kv_bytes_saved == pytest.approx(1 - saved)


def test_every_tolerance_must_hold(storage: Storage) -> None:
    both = [TOLERANCE, {"metric": "bits_per_byte", "points": 4}]
    run_study(storage, tolerant(both, budget=2), FakeScorer(8))
    for accuracy, bits, result in ((-0.01, 0.01, "within"), (-0.01, 0.05, "not shown")):
        tell(storage, "s", "acc_norm", ci90=[accuracy, 0.0])
        tell(storage, "s", "bits_per_byte", ci90=[0.0, bits])
        assert found(storage).sizes[0].result == result


def test_there_is_no_verdict_until_every_size_is_confirmed(storage: Storage) -> None:
    run_study(storage, tolerant(selectors=["sensitivity"]), FakeScorer(8), n_trials=10)
    told = found(storage)
    assert not told.is_final
    assert told.chosen is None
    assert "No verdict yet" in sentence(told)
    run_study(storage, tolerant(selectors=["sensitivity"]), FakeScorer(8))
    assert found(storage).is_final
    study = studies_of(storage)[0]
    study.set_user_attr(CONFIRMATION_KEY, None)
    assert not found(storage).is_final


def test_without_a_tolerance_there_is_no_verdict(storage: Storage) -> None:
    run_study(storage, tolerant([]), FakeScorer(8))
    assert verdict(studies_of(storage)) is None


def test_a_selector_without_a_single_score_holds_nobody_up(storage: Storage) -> None:
    run_study(storage, tolerant(budget=3), FakeScorer(8, diverging=(3, 4, 5, 6, 7)))
    assert best_trial(studies_of(storage)[1]) is None
    assert found(storage).is_final


def test_a_tolerance_given_after_looking_is_read_and_says_so(storage: Storage) -> None:
    scorer = FakeScorer(8)
    run_study(storage, tolerant(budget=2), scorer)
    assert "when held-out results were known" not in sentence(found(storage))
    n_scored = scorer.n_scored
    wider = {"metric": "acc_norm", "points": 30}
    run_study(storage, tolerant(wider, budget=2), scorer)
    assert scorer.n_scored == n_scored
    told = found(storage)
    assert told.chosen is not None
    assert told.late
    assert "within 30 points (a tolerance given when held-out results were known)" in sentence(told)
    run_study(storage, tolerant(budget=2), scorer)  # what was said before is no less true
    assert not found(storage).late
    run_study(storage, tolerant([], budget=2), scorer)
    assert verdict(studies_of(storage)) is None


def test_a_tolerance_changed_before_anything_is_confirmed_is_as_good_as_the_first(
    storage: Storage,
) -> None:
    create_studies(storage.optuna, tolerant(budget=2), FakeScorer(8).shape)
    run_study(storage, tolerant({"metric": "acc_norm", "points": 30}, budget=2), FakeScorer(8))
    assert found(storage).tolerance[0].points == 30
    assert not found(storage).late


def test_a_selector_that_is_still_searching_is_waited_for(storage: Storage) -> None:
    """Some of its masks have no score, and nothing of it runs in Optuna's study."""
    spec = tolerant(selectors=["sensitivity", "greedy"], budget=3)
    scorer = FakeScorer(8, diverging=(0,))
    run_study(storage, spec, scorer, n_trials=14)  # all of the first, and some of the second
    one, other = studies_of(storage)
    assert best_trial(one) is not None
    assert best_trial(other) is None
    assert any("mqasearch:invalid" in trial.user_attrs for trial in other.trials)
    assert found(storage).sizes == ()
    run_study(storage, spec, scorer)
    assert len(found(storage).sizes) == 1


def test_automatic_sizes_are_those_of_the_model(storage: Storage) -> None:
    run_study(storage, tolerant(budget="auto", selectors=["sensitivity"]), FakeScorer(12))
    run_study(storage, tolerant(budget="auto", selectors=["sensitivity"]), FakeScorer(12))
    assert [size.n_converted for size in found(storage).sizes] == [2, 4, 6, 8]


def test_the_verdict_is_in_the_masks_file_by_its_schema(storage: Storage, tmp_path: Path) -> None:
    run_study(storage, tolerant(), FakeScorer(8))
    studies = [s for s in studies_of(storage) if s.study_name.startswith("s-n3.")]
    document = export("s-n3", studies, found(storage))
    write_masks(document, tmp_path / "masks.json")
    assert document["verdict"] == as_data(found(storage))
    assert document["verdict"]["sentence"] == sentence(found(storage))
    without = export("s-n3", studies)
    write_masks(without, tmp_path / "masks.json")
    assert "verdict" not in without


def test_finalists_are_corrected_for_their_number(storage: Storage) -> None:
    run_study(storage, tolerant(budget=3), FakeScorer(8))
    masks = export("s", studies_of(storage))["masks"]
    assert len({tuple(mask["mask"]) for mask in masks}) == 2
    for metric in ("acc_norm", "bits_per_byte"):
        deltas = [mask["delta"]["hellaswag"][metric] for mask in masks]
        smallest = min(deltas, key=lambda delta: delta["p_value"])
        assert smallest["p_holm"] == pytest.approx(min(1.0, 2 * smallest["p_value"]))


def outcome(loss: float, low: float, high: float) -> Outcome:
    """An accuracy's, on 400 documents."""
    return Outcome("hellaswag", POINT, NonInferiority(loss, (low, high), 0.01, 400, 0.01), True)


@pytest.mark.parametrize("limit", [0.00996, 0.0099996, 0.01, 0.010004, 0.0104, 0.0096])
def test_what_is_shown_and_what_is_decided_never_contradict_each_other(limit: float) -> None:
    test = outcome(0.005, 0.0, limit)
    shown = difference_in_words(test)
    lower = float(shown.partition("CI ")[2].partition(",")[0].replace("−", "-"))
    assert (lower > -POINT.points) == test.loss.shown
    assert conclusion(test).startswith("within") == test.loss.shown


def test_too_few_documents_are_answered_with_how_many_it_would_take() -> None:
    test = outcome(0.002, -0.014, 0.018)
    needed = test.loss.documents_needed
    assert needed is not None
    assert needed > 400
    words = conclusion(test)
    said = int(words.partition("about ")[2].partition(" ")[0].replace(",", ""))
    assert needed <= said <= 1.1 * needed + 10
    assert conclusion(outcome(0.02, -0.001, 0.04)).endswith(
        "nor by more documents if this is the loss"
    )
    assert conclusion(outcome(0.04, 0.02, 0.06)) == "not within 1 point"


def test_a_verdict_with_no_size_says_what_the_smallest_one_lost(storage: Storage) -> None:
    run_study(storage, tolerant(budget=[2, 4]), FakeScorer(8))
    for name in ("s-n2", "s-n4"):
        tell(storage, name, "acc_norm", value=-0.04, ci90=[-0.07, -0.01])
    told = found(storage)
    assert told.chosen is None
    said = sentence(told)
    assert said.startswith("No size is shown to be within the tolerance; 2 of 8 layers")
    assert "not shown to be within 5 points" in said
    assert "documents" in said


@pytest.mark.parametrize("lacking", ["delta", "higher_is_better"])
def test_a_metric_that_cannot_be_tested_is_named(storage: Storage, lacking: str) -> None:
    run_study(storage, tolerant(budget=2), FakeScorer(8))
    for study in studies_of(storage):
        row = confirmation(study.user_attrs)
        assert row is not None
        del row["tasks"]["hellaswag"]["acc_norm"][lacking]
        set_confirmation(study, row)
    told = found(storage)
    assert told.sizes[0].result == "not shown"
    assert "no held-out acc_norm" in sentence(told)


def test_results_of_an_older_version_are_confirmed_again_from_their_scores(
    storage: Storage,
) -> None:
    scorer = FakeScorer(8)
    run_study(storage, tolerant(budget=2), scorer)
    before = found(storage)
    for study in studies_of(storage):
        row = confirmation(study.user_attrs)
        assert row is not None
        del row["statistics"], row["tasks"]["hellaswag"]["acc_norm"]["delta"]["ci90"]
        set_confirmation(study, row)
    assert found(storage).chosen is None
    n_scored = scorer.n_scored
    run_study(storage, tolerant(budget=2), scorer)
    assert (found(storage), scorer.n_scored) == (before, n_scored)


def test_no_confirmation_leaves_none(storage: Storage) -> None:
    documents = {"search": 40, "confirmation": 0}
    scorer = FakeScorer(6)
    run_study(storage, spec_of(documents=documents, selectors=["sensitivity"]), scorer)
    (study,) = studies_of(storage)
    assert best_trial(study) is not None
    assert confirmation(study.user_attrs) is None


def test_direction_counts() -> None:
    rises = outcome(0.004, -0.002, 0.009)
    falls = replace(rises, higher_is_better=False)
    assert rises.difference == -falls.difference
    assert rises.interval == (-falls.interval[1], -falls.interval[0])
