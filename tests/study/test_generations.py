"""More documents in a study file: nothing is scored twice, nothing is mixed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from studies_on_fake import run_study, spec_of, storage_in, studies_of

from mqasearch.creation import More, create_studies
from mqasearch.errors import StorageError, UserError
from mqasearch.export import export
from mqasearch.mask import KVHeads
from mqasearch.record import Storage, confirmation, study_facts
from mqasearch.score import Documents, NoScore, Score, TaskSpec
from mqasearch.scoring import FakeScorer
from mqasearch.study.comparison_rows import compare, finished
from mqasearch.study.selection import Selection, find_studies, open_selections
from mqasearch.worker import Watcher, add_trials

SELECTORS = ["sensitivity", "greedy", {"name": "gp", "n_masks": 5}]


class CountingScorer(FakeScorer):
    """Which documents of which masks were computed."""

    def __init__(self, n_layers: int, *, many: bool = False) -> None:
        super().__init__(n_layers)
        self.many = many
        self.computed: list[tuple[KVHeads, str, int]] = []
        self._known = 0

    def score(self, kv_heads: KVHeads, task: TaskSpec, documents: Documents) -> Score:
        n_docs = self._n_docs(documents)
        rows = range(self._known, n_docs)
        self.computed += [(kv_heads, documents.split, row) for row in rows]
        return super().score(kv_heads, task, documents)

    def score_in_parts(
        self,
        kv_heads: KVHeads,
        task: TaskSpec,
        documents: Documents,
        part: int,
        known: Score | None = None,
    ) -> Iterator[Score]:
        self._known = known.n_docs if known else 0
        for score in super().score_in_parts(kv_heads, task, documents, part, known):
            yield score
            self._known = score.n_docs
        self._known = 0

    def score_many(self, masks: Any, task: TaskSpec, documents: Documents) -> list[Score | NoScore]:
        return super().score_many(masks, task, documents)

    def gains_from_many(self) -> bool:
        return self.many


def spec_on(search: object, confirmation: object = 80, **changes: Any) -> Any:
    documents = {"search": search, "confirmation": confirmation}
    return spec_of(selectors=SELECTORS, documents=documents, **changes)


def n_docs_of(storage: Storage, name: str) -> list[int | None]:
    facts = find_studies(storage.optuna, name).values()
    return [each.study_spec.task_specs[0].limit for each in facts]


@pytest.mark.parametrize("many", [False, True])
def test_a_search_on_more_documents_computes_the_new_ones_alone(
    storage: Storage, tmp_path: Path, many: bool
) -> None:
    scorer = CountingScorer(8, many=many)
    run_study(storage, spec_on(16), scorer)
    first = {row.selector: row for row in compare(studies_of(storage))}
    known = set(scorer.computed)
    run_study(storage, spec_on(64), scorer)
    assert len(scorer.computed) == len(set(scorer.computed))  # no document of a mask twice
    masks = {row.facts.mask for study in studies_of(storage) for row in finished(study)}
    new = [row for row in scorer.computed if row not in known and row[1] == "search"]
    begun = {mask for mask, split, _ in known if split == "search"}
    assert all(row >= 16 for mask, _, row in new if mask in begun)
    assert {mask for mask, _, _ in new} == {
        tuple(1 if flag == "1" else 4 for flag in mask) for mask in masks
    }

    (tmp_path / "fresh").mkdir()
    fresh = storage_in(tmp_path / "fresh")
    run_study(fresh, spec_on(64), FakeScorer(8))
    pairs = zip(compare(studies_of(storage)), compare(studies_of(fresh)), strict=True)
    for mine, other in pairs:
        assert (mine.mask, mine.n_trials) == (other.mask, other.n_trials)
        assert mine.value == pytest.approx(other.value)
        assert mine.value != first[mine.selector].value
        assert mine.confirmed == other.confirmed
    fresh.close()


def test_values_on_different_documents_never_share_a_study(storage: Storage) -> None:
    scorer = FakeScorer(6)
    run_study(storage, spec_on(16), scorer)
    before = {s.study_name: [t.value for t in s.trials] for s in studies_of(storage)}
    run_study(storage, spec_on(64), scorer)
    run_study(storage, spec_on(None), scorer)
    assert n_docs_of(storage, "s") == n_docs_of(storage, "s@all") == [None] * 3
    assert n_docs_of(storage, "s@64") == [64] * 3
    assert n_docs_of(storage, "s@16") == [16] * 3
    assert n_docs_of(storage, "s.greedy") == [16]
    assert n_docs_of(storage, "s@64.greedy") == [64]
    with pytest.raises(StorageError, match="s@64"):
        find_studies(storage.optuna, "s@65")
    after = {s.study_name: [t.value for t in s.trials] for s in studies_of(storage, "s@16")}
    assert after == before
    assert run_study(storage, spec_on(None), scorer) == 0
    document = export("s", studies_of(storage))
    assert {mask["study"]["name"] for mask in document["masks"]} == {
        f"s@all.{name}" for name in ("sensitivity", "greedy", "gp")
    }


def test_every_budget_of_a_file_grows_together(storage: Storage) -> None:
    for n_docs in (16, 32):
        run_study(storage, spec_on(n_docs, budget=[1, 2]), FakeScorer(6))
    assert n_docs_of(storage, "s") == [32] * 6
    assert n_docs_of(storage, "s-n2") == n_docs_of(storage, "s-n2@32") == [32] * 3
    assert n_docs_of(storage, "s-n2@16") == [16] * 3
    assert len(n_docs_of(storage, "s@16")) == 6


def test_trials_that_were_added_are_added_to_the_larger_search(storage: Storage) -> None:
    spec = spec_on(16)
    create_studies(storage.optuna, spec, FakeScorer(8).shape)
    add_trials(storage, "s", More(4, adds=True))
    create_studies(storage.optuna, spec_on(64), FakeScorer(8).shape)
    add_trials(storage, "s", More(1, adds=True))
    allotted = {n: f.allotted for n, f in find_studies(storage.optuna, "s").items()}
    assert allotted == {"s@64.sensitivity": None, "s@64.greedy": None, "s@64.gp": 10}
    assert find_studies(storage.optuna, "s.gp")["s.gp"].allotted == 9


def test_more_held_out_documents_confirm_the_best_masks_on_the_new_ones(storage: Storage) -> None:
    scorer = CountingScorer(6)
    run_study(storage, spec_on(16, 50), scorer)
    names = [study.study_name for study in studies_of(storage)]
    before = {s.study_name: confirmation(s.user_attrs) for s in studies_of(storage)}
    confirmed: list[Selection] = []
    for n_docs in (120, 120, None):
        run_study(
            storage, spec_on(16, n_docs), scorer, watcher=Watcher(on_confirm=confirmed.append)
        )
        assert [study.study_name for study in studies_of(storage)] == names
    assert [each.study.study_name for each in confirmed] == names * 2
    assert len(scorer.computed) == len(set(scorer.computed))
    for study in studies_of(storage):
        held_out, earlier = confirmation(study.user_attrs), before[study.study_name]
        assert held_out is not None
        assert earlier is not None
        assert held_out["mask"] == earlier["mask"]
        assert held_out["tasks"]["hellaswag"]["acc_norm"]["n_docs"] == 400
        facts = study_facts(study.user_attrs)
        assert facts is not None
        assert facts.study_spec.documents.confirmation is None


@pytest.mark.parametrize(
    ("search", "confirmation", "said"),
    [
        (8, 80, "documents.search: 16, and 8 would be fewer: give 16 or more"),
        (32, 40, "documents.confirmation: 80, and 40 would be fewer"),
    ],
)
def test_fewer_documents_are_refused(
    storage: Storage, search: int, confirmation: int, said: str
) -> None:
    create_studies(storage.optuna, spec_on(16), FakeScorer(6).shape)
    with pytest.raises(UserError, match=said):
        create_studies(storage.optuna, spec_on(search, confirmation), FakeScorer(6).shape)
    assert n_docs_of(storage, "s") == [16] * 3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 1}, r"another spec \(seed: 0 → 1\)"),
        ({"n_trials": 99}, r"n_trials: 30 → 99.*--n-trials \+20"),
        ({"documents": {"search": 64, "confirmation": 80, "seed": 1}}, "documents.seed: 0 → 1"),
        ({"documents": {"search": "full", "confirmation": 80}}, "documents.search: 16 → full"),
    ],
)
def test_whatever_else_changes_is_refused_as_ever(
    storage: Storage, changes: dict[str, Any], said: str
) -> None:
    create_studies(storage.optuna, spec_on(16), FakeScorer(6).shape)
    base: dict[str, Any] = {"selectors": SELECTORS}
    base["documents"] = {"search": 64, "confirmation": 80}
    with pytest.raises(UserError, match=said):
        create_studies(storage.optuna, spec_of(**(base | changes)), FakeScorer(6).shape)
    assert n_docs_of(storage, "s") == [16] * 3


def test_a_half_made_larger_study_is_finished_by_the_next_caller(storage: Storage) -> None:
    shape = FakeScorer(6).shape
    create_studies(storage.optuna, spec_on(16), shape)
    names = create_studies(storage.optuna, spec_on(64), shape)
    storage.optuna.delete_study(storage.optuna.get_study_id_from_name(names[-1]))
    assert create_studies(storage.optuna, spec_on(64), shape) == names
    for selection in open_selections(storage.optuna, find_studies(storage.optuna, names[0])):
        assert [task.state for task in selection.tasks()] == ["queued"]
