"""A row of a dataset is in one split, whichever task or group asks for it."""

from typing import Any

import pytest
from datasets import Dataset
from lm_eval.api.task import Task
from tasks.small_tasks import SmallTask

from mqasearch.score import Documents, Split
from mqasearch.tasks.documents import digest_of, document_hash, row_hashes
from mqasearch.tasks.prepared import LoadedTask

SPLITS: tuple[Split, ...] = ("search", "confirmation", "calibration")
ROWS: list[dict[str, Any]] = [
    {"text": f"w{n} w{n + 1}", "choices": ["w1", "w2"], "gold": n % 2} for n in range(40)
]


def plain(name: str, rows: list[dict[str, Any]], **config: Any) -> Task:
    return SmallTask(
        name,
        rows,
        output_type="multiple_choice",
        doc_to_text="text",
        doc_to_target="gold",
        doc_to_choice="choices",
        metric_list=[{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        **config,
    )


def with_more(rows: Dataset) -> Dataset:
    """As HellaSwag's process_docs: a column more."""
    return rows.map(lambda row: {"query": f"Question: {row['text']}"})


def load(name: str, num_fewshot: int = 0, seed: int = 0) -> list[Task]:
    match name:
        case "one":
            return [plain("one", ROWS[:25])]
        case "two":
            return [plain("two", ROWS[20:])]
        case "processed":
            return [plain("processed", ROWS, process_docs=with_more)]
        case "renamed":
            rows = [{**row, "label": row["gold"]} for row in ROWS]
            return [plain("renamed", rows, process_docs=lambda d: d.remove_columns(["label"]))]
        case "repeating":
            return [plain("repeating", [*ROWS[:6], *ROWS[:6]])]
    return [*load("one"), *load("two")]


def split_by_text(name: str) -> dict[str, set[Split]]:
    loaded = LoadedTask(name, load=load)
    found: dict[str, set[Split]] = {}
    for split in SPLITS:
        for document in loaded.in_order(Documents(split)):
            found.setdefault(document.document["text"], set()).add(split)
    return found


def test_a_row_has_one_split_in_every_task_and_group() -> None:
    whole = split_by_text("group")
    assert len(whole) == len(ROWS)
    assert {len(splits) for splits in whole.values()} == {1}
    assert {split for splits in whole.values() for split in splits} == set(SPLITS)
    for name in ("one", "two", "processed", "repeating"):
        assert split_by_text(name).items() <= whole.items()


def test_what_a_task_adds_to_a_row_changes_the_document_and_not_the_row() -> None:
    (raw,), (processed,) = load("one"), load("processed")
    first, again = raw.eval_docs[0], processed.eval_docs[0]
    assert row_hashes(raw, [first]) == row_hashes(processed, [again])
    assert document_hash(first) != document_hash(again)


def test_where_a_task_keeps_only_part_of_a_row_the_document_decides() -> None:
    (task,) = load("renamed")
    documents = list(task.eval_docs)
    assert row_hashes(task, documents) == [document_hash(document) for document in documents]


def test_a_task_without_a_dataset_has_documents_all_the_same() -> None:
    (task,) = load("one")
    documents = list(task.eval_docs)
    for dataset in (None, {}, {"test": documents}):
        task.dataset = dataset
        assert row_hashes(task, documents) == [document_hash(document) for document in documents]


def test_a_row_of_two_members_counts_twice_in_an_order_that_no_file_decides() -> None:
    def order(members: list[str]) -> tuple[list[tuple[str, str]], str]:
        loaded = LoadedTask("group", load=lambda *_: [load(name)[0] for name in members])
        rows = list(loaded.in_order(Documents("full")))
        assert loaded.digest(Documents("full")) == digest_of([row.digest for row in rows])
        return [(row.task.task_name, row.document["text"]) for row in rows], loaded.digest(
            Documents("full")
        )

    there, back = order(["one", "two"]), order(["two", "one"])
    assert there == back
    assert len(there[0]) == len(set(there[0])) == 45


def test_a_row_that_a_task_holds_twice_is_scored_twice() -> None:
    loaded = LoadedTask("repeating", load=load)
    for limit in range(12):
        part = list(loaded.in_order(Documents("full", limit)))
        assert len(part) == limit
    texts = [row.document["text"] for row in loaded.in_order(Documents("full"))]
    assert sorted(texts) == sorted([*texts[::2], *texts[::2]])


@pytest.mark.long
@pytest.mark.parametrize("subject", ["mmlu_anatomy", "mmlu_virology"])
def test_a_question_of_mmlu_has_one_split(subject: str) -> None:
    def splits(name: str) -> dict[str, Split]:
        loaded = LoadedTask(name)
        return {
            document.document["question"]: split
            for split in SPLITS
            for document in loaded.in_order(Documents(split))
            if document.task.task_name == subject
        }

    part = "mmlu_stem" if subject == "mmlu_anatomy" else "mmlu_other"
    assert splits(subject) == splits(part)
    assert len(splits(subject)) > 100
