"""Studies that heal their finalists."""

from pathlib import Path
from typing import Any

import pytest

from mqasearch.checkpoint.card import model_card
from mqasearch.creation import create_studies
from mqasearch.dashboard.pages import comparison_page
from mqasearch.dashboard.study_reading import read_comparisons
from mqasearch.errors import ScoreError, SpecError, UserError
from mqasearch.export import export, read_mask, without_evidence, write_masks
from mqasearch.formats import FORMATS
from mqasearch.mask import KVHeads
from mqasearch.record import Storage, confirmation, unconfirmed
from mqasearch.scoring import FakeScorer, Scorer, Scoring
from mqasearch.scoring.healers import FakeHealer
from mqasearch.study import compare, find_studies, open_selections, sentence, verdict
from mqasearch.study.unconfirmed import why_unconfirmed
from mqasearch.worker.run import Limits, Watcher, work_with
from tests.studies_on_fake import spec_of, studies_of
from tests.worker.healers import RECIPE, CountedHealer, run


def test_each_finalist_is_healed_once_and_confirmed_beside_the_mask(storage: Storage) -> None:
    healer = run(storage)
    rows = [confirmation(study.user_attrs) for study in studies_of(storage)]
    masks = {row["mask"] for row in rows if row is not None}
    assert isinstance(healer, CountedHealer)
    assert len(healer.runs) == len(masks)
    for row in rows:
        assert row is not None
        before = row["tasks"]["hellaswag"]["kl"]
        after = row["healed"]["tasks"]["hellaswag"]["kl"]
        gained = row["healed"]["gained"]["hellaswag"]["kl"]
        assert after["value"] < before["value"]
        assert after["n_docs"] == before["n_docs"] == 80
        assert gained["original"] == before["value"]
        assert gained["delta"]["value"] == pytest.approx(after["value"] - before["value"])
        assert row["healed"]["facts"]["steps"] == 20
    again = run(storage)
    assert isinstance(again, CountedHealer)
    assert again.runs == []


def test_compare_and_export_show_both(storage: Storage, tmp_path: Path) -> None:
    run(storage)
    for row in compare(studies_of(storage)):
        assert row.held_out is not None
        assert row.healed_held_out is not None
        assert row.healed_held_out.value < row.held_out.value
    document = export("s", studies_of(storage))
    write_masks(document, tmp_path / "masks.json")
    mask = read_mask(tmp_path / "masks.json")
    healed = mask["healed"]
    assert healed["recipe"] == RECIPE.parameters
    assert healed["text"]["tasks"] == [{"name": "hellaswag", "num_fewshot": 0}]
    kl, before = (
        scores["hellaswag"]["kl"] for scores in (mask["scores"], healed["unhealed"]["scores"])
    )
    assert kl["value"] < before["value"]
    assert (healed["device"], healed["ending"]) == ("cpu", "all steps done")
    page = model_card(mask, FakeScorer().shape, FORMATS["hf"], "llama")
    assert "| confirmation, 80 |" in page
    assert "| search" not in page, "the search scored the mask before healing"
    assert without_evidence(mask)["healed"].keys() == {"recipe", "text"}
    gained = healed["gained"]["hellaswag"]["kl"]["value"]
    assert gained == pytest.approx(kl["value"] - before["value"])


def test_the_dashboard_shows_both(storage: Storage) -> None:
    run(storage)
    (comparison,) = read_comparisons(storage.optuna)
    page = comparison_page(comparison).decode()
    assert "healed, held out" in page
    for study, row in zip(comparison.studies, compare(studies_of(storage)), strict=True):
        assert study.held_out == row.held_out
        assert study.healed_held_out == row.healed_held_out
        assert row.healed_held_out is not None
        assert f"{row.healed_held_out.value:.4f}"[:5] in page


def test_the_verdict_is_on_what_is_exported(storage: Storage) -> None:
    run(storage, tolerance={"metric": "bits_per_byte", "points": 60})
    found = verdict(studies_of(storage))
    assert found is not None
    (size,) = found.sizes
    assert size.is_healed
    assert "layers, healed, " in sentence(found)
    best = min(compare(studies_of(storage)), key=lambda row: row.value or 0)
    expected = 100 * best.healed["hellaswag"]["bits_per_byte"]["delta"]["value"]
    assert size.tests[0].difference == pytest.approx(expected)


def test_a_study_that_does_not_heal_says_nothing_of_it(storage: Storage) -> None:
    scorer = FakeScorer()
    create_studies(storage.optuna, spec_of(), scorer.shape)
    found = Scoring(scorer, scorer.model, "float32", "mean", "", "cpu")
    work_with(found, storage, find_studies(storage.optuna, "s"), Limits(), Watcher())
    assert all("healed" not in (confirmation(s.user_attrs) or {}) for s in studies_of(storage))
    assert not any(row.healed for row in compare(studies_of(storage)))
    assert all("healed" not in mask for mask in export("s", studies_of(storage))["masks"])


def test_a_healing_that_diverges_leaves_a_reason(storage: Storage) -> None:
    class Diverging(FakeHealer):
        def healed(self, kv_heads: KVHeads) -> tuple[Scorer, dict[str, float]]:
            raise ScoreError("kl is nan")

    run(storage, Diverging(FakeScorer(), RECIPE))
    for study in studies_of(storage):
        row = unconfirmed(study.user_attrs)
        assert row is not None
        assert (row["whose"], row["fault"]) == ("its healed mask", "kl is nan")
    # what is known of the masks themselves is not lost
    assert all(row.held_out is not None for row in compare(studies_of(storage)))
    assert not any("healed" in mask for mask in export("s", studies_of(storage))["masks"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"heal": "soon"}, "heal"),
        ({"heal": 0}, "heal"),
        ({"heal": {"step": 3}}, "did you mean 'steps'"),
        ({"heal": "auto", "documents": {"confirmation": 0}}, "nothing is held out to confirm"),
        ({"heal": "auto", "selectors": [], "enqueue": {"a": [1]}}, "name a selector"),
    ],
)
def test_what_cannot_be_healed_is_said_in_the_study_file(changes: Any, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        spec_of(**changes)


def test_too_little_memory_costs_no_result_and_is_tried_again(storage: Storage) -> None:
    class Large(FakeHealer):
        def healed(self, kv_heads: KVHeads) -> tuple[Scorer, dict[str, float]]:
            raise UserError("healing needs 9 GB")

    run(storage, Large(FakeScorer(), RECIPE), tolerance={"metric": "bits_per_byte", "points": 60})
    assert all(row.held_out is not None for row in compare(studies_of(storage)))
    selections = open_selections(storage.optuna, find_studies(storage.optuna, "s"))
    assert any("not healed (healing needs 9 GB)" in line for line in why_unconfirmed(selections))
    found = verdict(studies_of(storage))
    assert found is not None
    assert not found.sizes[0].is_healed
    healer = run(storage)
    assert isinstance(healer, CountedHealer)
    assert healer.runs
    assert all(row.healed_held_out is not None for row in compare(studies_of(storage)))
    assert why_unconfirmed(selections) == []


def test_there_is_no_verdict_while_a_finalist_is_being_healed(storage: Storage) -> None:
    class Stopped(BaseException):
        pass

    class Interrupted(FakeHealer):
        def healed(self, kv_heads: KVHeads) -> tuple[Scorer, dict[str, float]]:
            raise Stopped

    tolerance = {"metric": "bits_per_byte", "points": 60}
    with pytest.raises(Stopped):
        run(storage, Interrupted(FakeScorer(), RECIPE), tolerance=tolerance)
    assert any(row.held_out is not None for row in compare(studies_of(storage)))
    found = verdict(studies_of(storage))
    assert found is not None
    assert not found.sizes


def test_a_worker_whose_healing_is_another_is_refused(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(storage)
    monkeypatch.setattr("mqasearch.scoring.healers.healing_code", lambda: "another")
    with pytest.raises(UserError, match="would not be comparable"):
        run(storage)


@pytest.mark.parametrize(("written", "steps"), [(True, "auto"), (False, None), (7, 7)])
def test_yes_and_no(written: bool | int, steps: str | int | None) -> None:
    heal = spec_of(heal=written).heal
    assert (heal and heal.steps) == steps
