"""Studies that heal their finalists."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.task import Task
from optuna.trial import TrialState

from mqasearch import api
from mqasearch.dashboard.data import read_comparisons
from mqasearch.dashboard.pages import comparison_page
from mqasearch.errors import ScoreError, SpecError, UserError
from mqasearch.evaluation.fake import FakeScorer
from mqasearch.evaluation.prepared import TaskLibrary
from mqasearch.evaluation.scorer import Scorer
from mqasearch.healing import healed as healed_module
from mqasearch.healing.recipe import Recipe
from mqasearch.mask import KVHeads, LayerMask
from mqasearch.results import ScoreStore
from mqasearch.score import Documents, Score, ScoreKey, TaskSpec
from mqasearch.search import scoring
from mqasearch.search.attributes import confirmation, unconfirmed
from mqasearch.search.claims import Claims
from mqasearch.search.compare import compare
from mqasearch.search.create import create_studies
from mqasearch.search.evaluator import Evaluator
from mqasearch.search.healing import FakeHealer
from mqasearch.search.run import Limits, Watcher, create, work, work_with
from mqasearch.search.scoring import Scoring
from mqasearch.search.selection import find_studies, open_selections
from mqasearch.search.storage import Storage, open_storage
from mqasearch.search.unconfirmed import why_unconfirmed
from mqasearch.search.verdict import verdict
from mqasearch.search.verdict_words import sentence
from mqasearch.serving import card
from mqasearch.serving.export import export
from mqasearch.serving.mask_json import read_mask, without_evidence, write_masks
from tests.evaluation.small_tasks import small_task, small_tokenizer
from tests.studies_on_fake import spec_of, storage_in, studies_of
from tests.tiny import tiny_model

RECIPE = Recipe(20)


class CountedHealer(FakeHealer):
    """Notes what it heals; slow enough for others to ask meanwhile."""

    runs: list[KVHeads]
    seconds: float = 0.0

    def healed(self, kv_heads: KVHeads) -> tuple[Scorer, dict[str, float]]:
        self.runs.append(kv_heads)
        time.sleep(self.seconds)
        return super().healed(kv_heads)


def counted(scorer: FakeScorer, seconds: float = 0.0) -> CountedHealer:
    healer = CountedHealer(scorer, RECIPE)
    object.__setattr__(healer, "runs", [])
    object.__setattr__(healer, "seconds", seconds)
    return healer


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Storage]:
    opened = storage_in(tmp_path)
    yield opened
    opened.close()


def run(storage: Storage, healer: FakeHealer | None = None, **changes: Any) -> FakeHealer:
    scorer = FakeScorer()
    healer = healer or counted(scorer)
    create_studies(storage.optuna, spec_of(heal=20, **changes), scorer.shape)
    found = Scoring(scorer, scorer.model, "float32", "mean", "", "cpu", healer)
    work_with(found, storage, find_studies(storage.optuna, "s"), Limits(), Watcher())
    return healer


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
    assert "search" not in card._scores(mask), "the search scored the mask before healing"
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


@pytest.fixture(params=["sqlite", "postgresql"])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Storage]]:
    """Opens a database as another process would."""
    url = f"sqlite:///{tmp_path}/study.db"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres_url")
    opened: list[Storage] = []

    def open_one() -> Storage:
        opened.append(open_storage(url))
        return opened[-1]

    yield open_one
    for each in opened:
        each.close()


def evaluator_on(storage: Storage, scorer: FakeScorer, **settings: Any) -> Evaluator:
    claims = Claims(storage.engine, ScoreStore(storage.engine), **settings)
    return Evaluator(scorer, claims, [TaskSpec("hellaswag"), TaskSpec("piqa")])


def test_two_workers_never_heal_the_same_finalist(shared: Callable[[], Storage]) -> None:
    scorer = FakeScorer()
    healer = counted(scorer, seconds=0.3)
    mask, ready = LayerMask.of([1, 2], 12), threading.Barrier(3)
    evaluators = [evaluator_on(shared(), scorer) for _ in range(3)]

    def confirm(evaluator: Evaluator) -> Any:
        ready.wait()
        return evaluator.confirm_healed(mask, 40, healer)

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(confirm, evaluators))
    assert len(healer.runs) == 1
    assert found[0] == found[1] == found[2]
    assert set(found[0][0]) == {"hellaswag", "piqa"}


def test_a_finalist_of_a_worker_that_died_is_gone_on_with(
    shared: Callable[[], Storage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mqasearch.search.claims.seconds_started", lambda: 0.0)
    scorer = FakeScorer()
    mask = LayerMask.of([1, 2], 12)

    class Dead(BaseException):
        pass

    class Dying(FakeHealer):
        def healed(self, kv_heads: KVHeads) -> tuple[Scorer, dict[str, float]]:
            raise Dead

    first = evaluator_on(shared(), scorer, lease_seconds=1.0)
    monkeypatch.setattr(first.claims, "release", lambda digest: None)  # nothing is tidied up
    with pytest.raises(Dead):
        first.confirm_healed(mask, 40, Dying(scorer, RECIPE))
    healer = counted(scorer)
    began = time.monotonic()
    scores, _ = evaluator_on(shared(), scorer).confirm_healed(mask, 40, healer)
    assert 0.5 < time.monotonic() - began < 30
    assert len(healer.runs) == 1
    assert set(scores) == {"hellaswag", "piqa"}


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


def load_enough(name: str, num_fewshot: int = 0, seed: int = 0) -> list[Task]:
    return [small_task("choice", n_documents=120, name=name)]


def real_study(folder: Path, **changes: Any) -> Any:
    tiny_model("llama").save_pretrained(folder / "model")
    small_tokenizer().save_pretrained(folder / "model")
    model = {"name": str(folder / "model"), "dtype": "float32"}
    tasks, documents = ["hellaswag"], {"search": 4, "confirmation": 8, "calibration_tokens": 200}
    return spec_of(
        model=model,
        tasks=tasks,
        documents=documents,
        budget=1,
        merge={"name": "aligned", "tune": True},
        selectors=["sensitivity"],
        **changes,
    )


def test_a_study_on_a_model_and_what_convert_makes_of_it(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The converted checkpoint is the model that was confirmed: it is not healed again."""
    monkeypatch.setenv("MQASEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(scoring, "TaskLibrary", lambda: TaskLibrary(load_enough))
    runs: list[int] = []
    make = healed_module.Healing

    def healing(*args: Any, **options: Any) -> Any:
        runs.append(1)
        return make(*args, **options)

    monkeypatch.setattr(healed_module, "Healing", healing)
    create(storage, real_study(tmp_path, heal={"steps": 12, "tokens": 900}))
    work(storage, "s", device="cpu")
    assert len(runs) == 1
    write_masks(export("s", studies_of(storage)), tmp_path / "masks.json")
    exported = read_mask(tmp_path / "masks.json")
    api.convert(tmp_path / "masks.json", tmp_path / "out")
    assert len(runs) == 1
    written = read_mask(tmp_path / "out" / "mask.json")
    assert written["scores"] == exported["scores"]
    assert written["healed"]["kl"] == exported["healed"]["kl"]


def test_too_little_text_to_heal_on_is_said_before_the_search(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MQASEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(scoring, "TaskLibrary", lambda: TaskLibrary(load_enough))
    create(storage, real_study(tmp_path, heal={"steps": 12, "tokens": 20}))
    with pytest.raises(UserError, match="healing holds one calibration text"):
        work(storage, "s", device="cpu")
    done = (TrialState.COMPLETE, TrialState.PRUNED)
    assert not any(study.get_trials(states=done) for study in studies_of(storage))


def test_each_task_has_its_own_documents_in_the_key(shared: Callable[[], Storage]) -> None:
    """The first task may have too few documents for a larger limit to make a difference."""

    class Small(FakeScorer):
        def key(self, kv_heads: KVHeads, task: TaskSpec, documents: Documents) -> ScoreKey:
            most = min(documents.limit or 60, 60) if task.name == "hellaswag" else documents.limit
            return super().key(kv_heads, task, replace(documents, limit=most))

    scorer = Small()
    evaluator, healer = evaluator_on(shared(), scorer), counted(scorer)
    mask = LayerMask.of([1, 2], 12)
    for limit in (60, 70, 70):
        scores, _ = evaluator.confirm_healed(mask, limit, healer)
        assert scores["piqa"].n_docs == limit
    assert len(healer.runs) == 2


def test_scores_are_all_of_one_healing(shared: Callable[[], Storage]) -> None:
    """A worker that dies between two tasks leaves nothing of its weights behind."""

    class Dead(BaseException):
        pass

    class Fragile(FakeScorer):
        def score(self, kv_heads: KVHeads, task: TaskSpec, documents: Documents) -> Score:
            if task.name == "piqa":
                raise Dead
            return super().score(kv_heads, task, documents)

    class Half(FakeHealer):
        def healed(self, kv_heads: KVHeads) -> tuple[Scorer, dict[str, float]]:
            return Fragile(), super().healed(kv_heads)[1]  # not healed at all

    scorer = FakeScorer()
    evaluator, mask = evaluator_on(shared(), scorer), LayerMask.of([1, 2], 12)
    with pytest.raises(Dead):
        evaluator.confirm_healed(mask, 40, Half(scorer, RECIPE))
    scores, _ = evaluator.confirm_healed(mask, 40, counted(scorer))
    plain = evaluator.confirm(mask, 40).scores
    for task, score in scores.items():
        assert score.values["kl"] < plain[task].values["kl"]


def test_workers_heal_different_finalists(storage: Storage) -> None:
    scorer = FakeScorer()
    healer = counted(scorer, seconds=0.5)
    masks = [LayerMask.of([layer], 12) for layer in (1, 2)]
    one, two = evaluator_on(storage, scorer), evaluator_on(storage, scorer)
    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(one.confirm_healed, masks[0], 40, healer)
        while not healer.runs:
            time.sleep(0.01)
        assert two.is_healing(masks[0], 40, healer)
        assert not one.is_healing(masks[0], 40, healer)
        assert not two.is_healing(masks[1], 40, healer)
        busy.result()
    assert not two.is_healing(masks[0], 40, healer)


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
    monkeypatch.setattr("mqasearch.search.healing.healing_code", lambda: "another")
    with pytest.raises(UserError, match="would not be comparable"):
        run(storage)


@pytest.mark.parametrize(("written", "steps"), [(True, "auto"), (False, None), (7, 7)])
def test_yes_and_no(written: bool | int, steps: str | int | None) -> None:
    heal = spec_of(heal=written).heal
    assert (heal and heal.steps) == steps
