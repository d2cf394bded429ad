"""Offline tasks are lm-eval's tasks: same documents, prompts, answers and metrics."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager

from mqasearch.assets import CACHE_VARIABLE, benchmark_data
from mqasearch.errors import AssetError, UnknownNameError, UserError
from mqasearch.tasks import offline
from mqasearch.tasks.documents import row_hashes, split_of
from mqasearch.tasks.offline import (
    OfflineTask,
    all_task_names,
    check_task_name,
    load_task,
    offline_task_names,
)
from mqasearch.tasks.offline_names import tasks_folder

N_DOCUMENTS = {
    "hellaswag": 10_042,
    "piqa": 1_838,
    "winogrande": 1_267,
    "arc_easy": 570,
    "arc_challenge": 299,
    "openbookqa": 500,
    "sciq": 1_000,
    "social_iqa": 1_954,
    "commonsense_qa": 1_221,
    "copa": 100,
    "mmlu": 14_042,
}
"""Sizes of the public validation splits (of MMLU: test)."""

PROMPTS = {
    "piqa": (
        "Question: How do I ready a guinea pig cage for it's new occupants?\nAnswer:",
        " Provide the guinea pig with a cage full of a few inches of bedding made of ripped paper "
        "strips, you will also need to supply it with a water bottle and a food dish.",
    ),
    "arc_easy": (
        "Question: Which technology was developed most recently?\nAnswer:",
        " cellular telephone",
    ),
    "openbookqa": (
        "Frilled sharks and angler fish live far beneath the surface of the ocean, which is why "
        "they are known as",
        " Deep sea animals",
    ),
    "sciq": (
        "\nQuestion: Who proposed the theory of evolution by natural selection?\nAnswer:",
        " darwin",
    ),
    "social_iqa": (
        "Q: Tracy didn't go home that evening and resisted Riley's attacks. What does Tracy need "
        "to do before this?\nA:",
        " Find somewhere to go",
    ),
    "hellaswag": (
        "Roof shingle removal: A man is sitting on a roof. He",
        " starts pulling up roofing on a roof.",
    ),
    # Two spaces: lm-eval puts one before every answer, and COPA's answers bring their own.
    "copa": ("The man turned on the faucet therefore", "  water flowed from the spout."),
}
"""The first document by hand: the prompt, and what follows it when the answer is right."""

BENCHMARKS = list(N_DOCUMENTS)


@pytest.fixture
def no_network(monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def requests_of(task: Any, document: Any) -> list[Any]:
    built = task.construct_requests(
        doc=document, ctx=task.fewshot_context(document, num_fewshot=0), metadata=("t", 0, 1)
    )
    return [request.args for request in built]


def gold_request(task: Any, document: Any) -> tuple[str, str]:
    """The right answer's context and continuation."""
    target = task.doc_to_target(document)
    if isinstance(target, str) and target in task.doc_to_choice(document):
        target = task.doc_to_choice(document).index(target)
    return requests_of(task, document)[target]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_document_is_there(name, no_network):
    tasks = load_task(name)
    assert sum(len(task.eval_docs) for task in tasks) == N_DOCUMENTS[name]
    assert len(tasks) == (57 if name == "mmlu" else 1)


@pytest.mark.parametrize("name", PROMPTS)
def test_the_first_prompt_is_as_written_by_hand(name):
    task = load_task(name)[0]
    assert gold_request(task, task.eval_docs[0]) == PROMPTS[name]


def test_winogrande_compares_what_follows_two_contexts():
    task = load_task("winogrande")[0]
    ends = " always got the easier cases."
    start = "Sarah was a much better surgeon than Maria so"
    assert requests_of(task, task.eval_docs[0]) == [
        (f"{start} Sarah", ends),
        (f"{start} Maria", ends),
    ]


def test_mmlu_asks_for_a_letter_after_the_subject():
    task = {task.task_name: task for task in load_task("mmlu_stem")}["mmlu_anatomy"]
    document = task.eval_docs[0]
    prompt, answer = gold_request(task, document)
    assert prompt.startswith(
        "The following are multiple choice questions (with answers) about anatomy.\n\n"
    )
    assert prompt.endswith(f"D. {document['choices'][3]}\nAnswer:")
    assert answer == " " + "ABCD"[document["answer"]]


@pytest.mark.parametrize(
    "name", [name for name in BENCHMARKS if name != "mmlu"] + ["mmlu_virology"]
)
def test_stock_lm_eval_builds_the_same_requests(name, tmp_path, monkeypatch):
    """lm-eval's own class and loader, told by a YAML to read the same arrow file."""
    task = load_task(name)[0]
    split = task.config.test_split or task.config.validation_split
    data = offline._data_folder(task.config.dataset_path, task.config.dataset_name)
    config = {
        "include": str(task.config.metadata["config_source"]),
        "task": "stock",
        "dataset_path": "arrow",
        "dataset_name": None,
        "dataset_kwargs": {
            "data_files": {split: str(data / split / "data-*.arrow")},
            "cache_dir": str(tmp_path / "datasets"),
        },
        "training_split": None,
        "fewshot_split": None,
        "test_split": split if split == "test" else None,
    }
    (tmp_path / "stock.yaml").write_text(yaml.safe_dump(config))
    manager = TaskManager(include_defaults=False, include_path=[tmp_path])
    stock = manager.load("stock")["tasks"]["stock"]
    assert type(stock) is ConfigurableTask
    assert stock.VERSION == task.VERSION
    assert stock.aggregation() == task.aggregation()
    assert stock.higher_is_better() == task.higher_is_better()
    step = len(task.eval_docs) // 40 + 1
    ours, theirs = task.eval_docs, stock.eval_docs
    for row in range(0, len(ours), step):
        assert requests_of(task, ours[row]) == requests_of(stock, theirs[row])
        assert task.doc_to_target(ours[row]) == stock.doc_to_target(theirs[row])


@pytest.mark.parametrize("name", [name for name in BENCHMARKS if name != "mmlu"])
def test_a_document_names_one_of_its_choices(name):
    task = load_task(name)[0]
    documents = task.eval_docs.select(range(0, len(task.eval_docs), 3))
    if name == "winogrande":  # its choices are contexts; the answer is which of them
        assert {task.doc_to_text(document) for document in documents} == {0, 1}
        return
    for document in documents:
        target, choices = task.doc_to_target(document), task.doc_to_choice(document)
        assert target in choices if isinstance(target, str) else 0 <= target < len(choices)


@pytest.mark.parametrize("name", ["arc_easy", "arc_challenge", "openbookqa", "sciq"])
def test_where_the_test_split_is_absent_validation_takes_its_place(name):
    task = load_task(name)[0]
    assert not task.has_test_docs()
    assert task.eval_docs[0] == task.validation_docs()[0]


def test_arc_has_two_configurations():
    easy, challenge = (load_task(name)[0].eval_docs for name in ("arc_easy", "arc_challenge"))
    assert not set(easy["id"]) & set(challenge["id"])


@pytest.mark.parametrize("name", ["piqa", "arc_challenge", "copa"])
def test_examples_are_documents_that_are_never_scored(name):
    task = load_task(name, num_fewshot=5)[0]
    assert {split_of(row) for row in row_hashes(task, task.sampler.df)} == {"calibration"}
    document = task.eval_docs[0]
    prompt = task.fewshot_context(document, num_fewshot=5)
    assert prompt.endswith(task.fewshot_context(document, num_fewshot=0))
    assert prompt.count(task.config.fewshot_delimiter) == 5


def test_a_document_is_no_example_for_itself():
    task = load_task("copa", num_fewshot=19)[0]
    for document in task.sampler.df:
        prompt = task.fewshot_context(document, num_fewshot=19)
        assert prompt.count(task.fewshot_context(document, num_fewshot=0)) == 1


def test_the_seed_decides_on_the_examples():
    def prompt(seed: int) -> str:
        task = load_task("piqa", num_fewshot=3, seed=seed)[0]
        return task.fewshot_context(task.eval_docs[0], num_fewshot=3)

    assert prompt(1) == prompt(1) != prompt(2)


def test_mmlu_takes_its_examples_from_dev_in_order():
    task = load_task("mmlu_anatomy", num_fewshot=2)[0]
    prompt = task.fewshot_context(task.eval_docs[0], num_fewshot=2)
    first, second = (task.doc_to_text(document) for document in task.dataset["dev"].select([0, 1]))
    assert prompt.index(first) < prompt.index(second)


@pytest.mark.parametrize(("name", "n"), [("copa", 20), ("mmlu_anatomy", 6)])
def test_more_examples_than_there_are_is_one_line(name, n):
    with pytest.raises(
        UserError, match=f"documents to take examples from: lower num_fewshot from {n}"
    ):
        load_task(name, num_fewshot=n)
    assert load_task(name, num_fewshot=n - 1)


def test_groups_stand_for_their_members():
    whole = [task.task_name for task in load_task("mmlu")]
    parts = [f"mmlu_{part}" for part in ("stem", "other", "social_sciences", "humanities")]
    assert whole == [task.task_name for part in parts for task in load_task(part)]
    assert set(offline_task_names()) == {*BENCHMARKS, *parts, *whole}


def test_offline_names_are_upstream_names():
    assert set(offline_task_names()) <= set(all_task_names())


def test_the_quick_list_of_names_is_that_of_lm_eval():
    known = set(TaskManager().all_tasks)
    assert known <= set(all_task_names())
    assert len(set(all_task_names()) - known) < 10


@pytest.mark.parametrize(
    ("name", "guess"), [("helaswag", "hellaswag"), ("gsm8kk", "gsm8k"), ("MMLU", None)]
)
def test_an_unknown_task_is_answered_with_the_nearest(name, guess):
    with pytest.raises(UnknownNameError, match=f"unknown task '{name}'") as error:
        load_task(name)
    said = str(error.value)
    assert "\n" not in said
    assert "hellaswag" in said
    assert guess is None or f"did you mean '{guess}'" in said


def test_a_name_is_checked_without_any_data(no_network, tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    check_task_name("hellaswag")
    check_task_name("gsm8k")
    assert not list(tmp_path.iterdir())


def test_without_a_hub_other_tasks_are_one_line(monkeypatch):
    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach 'gsm8k' on the Hub\n(LocalEntryNotFoundError)")

    folder = [tasks_folder() / "gsm8k"]
    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    monkeypatch.setattr(
        offline, "_hub_manager", lambda: TaskManager(include_defaults=False, include_path=folder)
    )
    with pytest.raises(
        AssetError, match=r"gsm8k needs its dataset from the hub.*Couldn't reach"
    ) as e:
        load_task("gsm8k")
    assert "\n" not in str(e.value)


@pytest.fixture
def copied_cache(tmp_path, monkeypatch) -> Path:
    """HellaSwag alone, in a cache of its own, before anything has been made of it."""
    source = benchmark_data() / "hellaswag"
    target = tmp_path / "cache" / "assets" / benchmark_data().name / "hellaswag"
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("cache-*", "tmp*"))
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_nothing_is_written_but_beside_the_data(copied_cache, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", elsewhere)
    before = {path for path in Path(datasets.config.HF_CACHE_HOME).rglob("*")}
    load_task("hellaswag")
    assert not elsewhere.exists()
    assert {path for path in Path(datasets.config.HF_CACHE_HOME).rglob("*")} == before
    made = [path for path in copied_cache.rglob("*") if path.is_file() and path.name[:4] != "data"]
    assert {path.parent.name for path in made} == {"validation"}


def test_data_that_cannot_be_written_beside_are_used_all_the_same(copied_cache, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    task = load_task("hellaswag")[0]
    assert isinstance(task, OfflineTask)
    assert gold_request(task, task.eval_docs[0]) == PROMPTS["hellaswag"]
    assert {path.name[:4] for path in copied_cache.rglob("*") if path.is_file()} == {"data"}


def test_processes_that_load_at_once_agree(copied_cache):
    code = (
        "from mqasearch.tasks.offline import load_task\n"
        "docs = load_task('hellaswag')[0].eval_docs\n"
        "print(len(docs), docs[10_000]['query'])"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    workers = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = {worker.communicate(timeout=300) for worker in workers}
    task = load_task("hellaswag")[0]
    assert said == {(f"10042 {task.eval_docs[10_000]['query']}\n", "")}
