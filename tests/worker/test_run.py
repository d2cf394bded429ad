"""The main job on the fake scorer: create, work, confirm, and again."""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from studies_on_fake import run_study, spec_of, storage_in, studies_of

from mqasearch.creation import create_studies
from mqasearch.errors import ModelError, StorageError, UserError
from mqasearch.export import export
from mqasearch.mask import LayerMask
from mqasearch.queue import Queue
from mqasearch.record import Storage, confirmation, trial_facts
from mqasearch.scoring import FakeScorer, Scoring, open_scoring
from mqasearch.spec import StudySpec
from mqasearch.study import (
    STATUS_HEADERS,
    Outlook,
    Selection,
    best_trial,
    compare,
    find_studies,
    finished,
    open_selections,
    study_rows,
)
from mqasearch.worker import run as run_module
from mqasearch.worker.run import Watcher, create, work


def test_every_selector_ends_with_a_mask_at_the_budget_that_beats_no_better_one(
    storage: Storage,
) -> None:
    scorer = FakeScorer(8)
    run_study(storage, spec_of(), scorer)
    for row, study in zip(compare(studies_of(storage)), studies_of(storage), strict=True):
        assert len(row.layers) == 3
        assert row.value is not None
        complete = study.get_trials(states=(TrialState.COMPLETE,))
        assert row.value == min(trial.value or math.nan for trial in complete)
        assert study.best_value == row.value
        assert sum(t.state == TrialState.COMPLETE for t in complete) == len(complete)


def test_probes_are_pruned_at_the_step_of_their_number_of_layers(storage: Storage) -> None:
    run_study(storage, spec_of(selectors=["greedy"]), FakeScorer(6))
    (study,) = studies_of(storage)
    for trial in study.trials:
        facts = trial_facts(trial)
        assert facts is not None
        if facts.n_converted == 3:
            assert trial.state == TrialState.COMPLETE
        else:
            assert trial.state == TrialState.PRUNED
            assert trial.intermediate_values == {facts.n_converted: facts.value}


def test_the_original_is_scored_first_and_every_trial_knows_its_difference(
    storage: Storage,
) -> None:
    run_study(storage, spec_of(), FakeScorer(6))
    for study in studies_of(storage):
        rows = finished(study)
        assert rows[0].facts.n_converted == 0
        assert rows[0].facts.delta == 0
        assert all(
            row.facts.delta == pytest.approx(row.facts.value - rows[0].facts.value) for row in rows
        )


def test_no_mask_is_scored_twice_by_any_selector(storage: Storage) -> None:
    scorer = FakeScorer(6)
    run_study(storage, spec_of(documents={"search": "full"}), scorer)
    masks = {row.facts.mask for study in studies_of(storage) for row in finished(study)}
    assert scorer.n_scored == len(masks)


def test_greedy_pays_nothing_for_what_sensitivity_scored(storage: Storage) -> None:
    run_study(storage, spec_of(selectors=["sensitivity", "greedy"]), FakeScorer(8))
    sensitivity, greedy = (finished(study) for study in studies_of(storage))
    known = {row.facts.mask for row in sensitivity}
    assert all(row.facts.reused for row in greedy if row.facts.mask in known)
    assert sum(row.facts.reused for row in greedy) >= 9


class Stop(KeyboardInterrupt):
    """Ctrl-C."""


def test_an_interrupted_run_goes_on_without_scoring_anything_twice(tmp_path: Path) -> None:
    whole, parts = storage_in(tmp_path), None
    (tmp_path / "parts").mkdir()
    parts = storage_in(tmp_path / "parts")
    run_study(whole, spec_of(), FakeScorer(6))

    scorer = FakeScorer(6)
    for stop_after in (1, 5, 9):
        seen: list[Selection] = []

        def interrupt(
            selection: Selection,
            _: object,
            seen: list[Selection] = seen,
            stop_after: int = stop_after,
        ) -> None:
            seen.append(selection)
            if len(seen) == stop_after:
                raise Stop

        with pytest.raises(Stop):
            run_study(parts, spec_of(), scorer, watcher=Watcher(on_trial=interrupt))
    run_study(parts, spec_of(), scorer)
    assert scorer.n_scored == len(
        {r.facts.mask for s in studies_of(parts) for r in finished(s)}
    ) + len({r.mask for r in compare(studies_of(parts))} | {str(LayerMask.empty(6))})
    assert [r.mask for r in compare(studies_of(parts))] == [
        r.mask for r in compare(studies_of(whole))
    ]
    whole.close()
    parts.close()


def test_an_interrupt_while_scoring_gives_the_mask_back(storage: Storage) -> None:
    class Interrupted(FakeScorer):
        def score(self, kv_heads, task, documents):  # type: ignore[no-untyped-def]
            if self.n_scored == 4:
                self.n_scored += 1
                raise Stop
            return super().score(kv_heads, task, documents)

    spec = spec_of(selectors=["greedy"])
    with pytest.raises(Stop):
        run_study(storage, spec, Interrupted(6))
    (study,) = studies_of(storage)
    (selection,) = open_selections(storage.optuna, find_studies(storage.optuna, "s"))
    (task,) = (task for task in selection.tasks() if not task.is_finished)
    assert task.state == "queued"
    run_study(storage, spec, FakeScorer(6))
    assert task.mask in {r.facts.mask for r in finished(study)}


def test_a_score_that_is_not_a_number_fails_the_trial_and_the_study_goes_on(
    storage: Storage,
) -> None:
    run_study(storage, spec_of(), FakeScorer(6, diverging=(4,)))
    for row, study in zip(compare(studies_of(storage)), studies_of(storage), strict=True):
        assert row.mask is None or row.mask[4] == "0"
        for trial in study.get_trials(states=(TrialState.FAIL,)):
            assert trial.user_attrs["mqasearch:mask"][4] == "1"
            assert "nan" in trial.user_attrs["mqasearch:invalid"]
    assert compare(studies_of(storage))[1].layers != ()


def test_the_best_masks_are_confirmed_on_documents_the_search_never_saw(storage: Storage) -> None:
    run_study(storage, spec_of(), FakeScorer(6))
    for study in studies_of(storage):
        best, held_out = best_trial(study), confirmation(study.user_attrs)
        assert best is not None
        assert held_out is not None
        assert held_out["mask"] == best.facts.mask
        for row in held_out["tasks"]["hellaswag"].values():
            assert row["n_docs"] == 80
            low, high = row["delta"]["ci95"]
            assert low <= row["delta"]["value"] <= high
            assert row["delta"]["value"] == pytest.approx(row["value"] - row["original"])


def test_masks_enqueued_by_name_are_scored_under_their_names(storage: Storage) -> None:
    masks = {"first": [0], "last-two": [4, 5]}
    run_study(storage, spec_of(selectors=[], enqueue=masks), FakeScorer(6))
    rows = {row.selector: row for row in compare(studies_of(storage))}
    assert {name: list(row.layers) for name, row in rows.items()} == {"original": []} | masks


def test_one_comparison_per_budget_shares_every_score(storage: Storage) -> None:
    scorer = FakeScorer(6)
    spec = spec_of(budget=[2, 3], selectors=["sensitivity"], documents={"search": "full"})
    run_study(storage, spec, scorer)
    assert sorted(find_studies(storage.optuna, "s")) == ["s-n2.sensitivity", "s-n3.sensitivity"]
    assert list(find_studies(storage.optuna, "s-n3")) == ["s-n3.sensitivity"]
    masks = {row.facts.mask for study in studies_of(storage) for row in finished(study)}
    assert scorer.n_scored == len(masks)


def test_a_worker_with_another_model_is_refused(storage: Storage) -> None:
    run_study(storage, spec_of(), FakeScorer(6), n_trials=1)
    with pytest.raises(ModelError, match="fingerprint: fake:6"):
        run_study(storage, spec_of(), FakeScorer(6, seed=1))


def test_status_says_what_is_left(storage: Storage) -> None:
    spec = spec_of(selectors=["sensitivity", {"name": "gp", "n_masks": 4}, "random"], n_trials=7)

    def left() -> list[int]:
        rows = [dict(zip(STATUS_HEADERS, r, strict=True)) for r in study_rows(storage.optuna)]
        return [row["left"] for row in rows]

    create_studies(storage.optuna, spec, FakeScorer(6).shape)
    before = left()
    assert before[2] == 7
    run_study(storage, spec, FakeScorer(6), n_trials=4)
    assert left() == [before[0] - 4, *before[1:]]
    run_study(storage, spec, FakeScorer(6))
    assert left() == [0, 0, 0]
    assert [len(finished(study)) for study in studies_of(storage)] == before


def test_an_objective_that_is_not_finite_fails_its_trials_and_the_study_ends(
    storage: Storage,
) -> None:
    class Huge(FakeScorer):
        def score(self, kv_heads, task, documents):  # type: ignore[no-untyped-def]
            score = super().score(kv_heads, task, documents)
            if kv_heads[2] == 1:
                return replace(score, values=dict.fromkeys(score.values, 1.7e308))
            return score

    weights = [{"name": name, "weight": 1e6} for name in ("hellaswag", "piqa")]
    run_study(storage, spec_of(tasks=weights, selectors=["greedy"]), Huge(6))
    (study,) = studies_of(storage)
    failed = study.get_trials(states=(TrialState.FAIL,))
    assert failed
    assert all("inf" in trial.user_attrs["mqasearch:invalid"] for trial in failed)
    assert len(compare([study])[0].layers) == 3


def test_masks_enqueued_by_name_are_exported_behind_those_of_selectors(storage: Storage) -> None:
    masks = {"first": [0], "last-two": [4, 5]}
    spec = spec_of(selectors=["sensitivity"], enqueue=masks)
    run_study(storage, spec, FakeScorer(6))
    document = export("s", studies_of(storage))
    found = [(m["study"]["selector"], m["mqa_layers"], m["budget"]) for m in document["masks"]]
    assert found[0][0] == "sensitivity"
    assert found[0][2] == {"n_layers": 3}
    assert sorted(found[1:]) == [
        ("first", [0], {"n_layers": 1}),
        ("last-two", [4, 5], {"n_layers": 2}),
    ]


def test_rows_of_several_budgets_say_which_they_belong_to(storage: Storage) -> None:
    run_study(storage, spec_of(budget=[1, 3], selectors=["sensitivity"]), FakeScorer(6))
    rows = [(row.comparison, row.budget, len(row.layers)) for row in compare(studies_of(storage))]
    assert rows == [("s-n1", 1, 1), ("s-n3", 3, 3)]


def delete(study: optuna.Study, folder: Path) -> None:
    """As another process does."""
    elsewhere = storage_in(folder)
    optuna.delete_study(study_name=study.study_name, storage=elsewhere.optuna)
    elsewhere.close()


def test_a_worker_whose_study_is_deleted_while_it_works_says_so(
    storage: Storage, tmp_path: Path
) -> None:
    deleted: list[str] = []

    def delete_once(selection: Selection) -> None:
        if not deleted:
            delete(selection.study, tmp_path)
            deleted.append(selection.study.study_name)

    watcher = Watcher(on_start=delete_once)
    with pytest.raises(StorageError, match=r"'s\.random' is no longer in the database"):
        run_study(storage, spec_of(selectors=["random"]), FakeScorer(6), watcher=watcher)


def test_a_worker_whose_study_is_deleted_while_it_waits_says_so(
    storage: Storage, tmp_path: Path
) -> None:
    create_studies(storage.optuna, spec_of(selectors=["sensitivity"]), FakeScorer(6).shape)
    (study,) = studies_of(storage)
    (waiting,) = open_selections(storage.optuna, find_studies(storage.optuna, "s"))
    for number in itertools.count():
        if waiting.outlook() != Outlook.READY:  # others have all that can be started now
            break
        other = Queue(storage.engine, worker=f"other-{number}")
        (other_s,) = open_selections(storage.optuna, find_studies(storage.optuna, "s"), other)
        look = other_s.look()
        assert other_s.add(look, look.wanted[0]) if look.wanted else other_s.take()
    delete(study, tmp_path)
    with pytest.raises(StorageError, match=r"'s\.sensitivity' is no longer in the database"):
        waiting.look()


def test_code_of_a_model_is_run_only_if_the_worker_is_told_to(storage: Storage) -> None:
    """Whoever can write to the database could name any model, and ask for its code."""
    create(storage, spec_of(model={"name": "fake:12", "trust_remote_code": True}))
    with pytest.raises(UserError, match=r"'fake:12'.*give --trust-remote-code"):
        work(storage, "s")
    assert not any(finished(study) for study in studies_of(storage))
    assert work(storage, "s", trust_remote_code=True) > 0


def test_trust_is_not_for_a_study_that_asks_for_none(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(model="fake:12")
    create(storage, spec)
    seen = []

    def scoring(spec: StudySpec, device: str) -> Scoring:
        seen.append(spec.model.trust_remote_code)
        return open_scoring(spec, device)

    monkeypatch.setattr(run_module, "open_scoring", scoring)
    work(storage, "s", trust_remote_code=True)
    assert seen == [False]
