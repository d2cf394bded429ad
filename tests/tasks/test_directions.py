"""Which way a metric goes is lm-eval's word, task by task."""

from typing import Any

import pytest
from lm_eval.api.task import Task
from tasks.small_tasks import SmallTask, load_small, small_tokenizer
from tiny import tiny_model

from mqasearch.conversion import ConvertibleModel
from mqasearch.errors import UnknownNameError, UserError
from mqasearch.families import family_of
from mqasearch.merging import merge_of
from mqasearch.score import HIGHER_IS_BETTER, Documents, TaskSpec
from mqasearch.scoring.harness import HarnessScorer
from mqasearch.tasks import metrics
from mqasearch.tasks.metrics import higher_is_better, metrics_of
from mqasearch.tasks.offline import load_task
from mqasearch.tasks.prepared import TaskLibrary

DOCUMENTS = [
    {"text": f"w{n} w{n + 1}", "choices": ["w1", "w2 w3"], "gold": n % 2, "target": "w5"}
    for n in range(6)
]
UPWARDS = {"aggregation": "mean", "higher_is_better": True}
DOWNWARDS = {"aggregation": "mean", "higher_is_better": False}


def choosing(name: str, *listed: dict[str, Any]) -> Task:
    """A multiple-choice task with some of lm-eval's metrics."""
    return SmallTask(
        name,
        [document | {"task": name} for document in DOCUMENTS],
        output_type="multiple_choice",
        doc_to_text="text",
        doc_to_target="gold",
        doc_to_choice="choices",
        metric_list=list(listed),
    )


def answering(name: str, *filters: str, **direction: Any) -> Task:
    """A task whose answers are generated, then read by some filters."""
    return SmallTask(
        name,
        DOCUMENTS,
        output_type="generate_until",
        doc_to_text="text",
        doc_to_target="target",
        generation_kwargs={"until": ["w7"], "max_gen_toks": 2, "do_sample": False},
        metric_list=[{"metric": "exact_match", "aggregation": "mean", **direction}],
        filter_list=[{"name": name, "filter": [{"function": "take_first"}]} for name in filters],
    )


def load(name: str, num_fewshot: int = 0, seed: int = 0) -> list[Task]:
    acc, norm = {"metric": "acc", **UPWARDS}, {"metric": "acc_norm", **UPWARDS}
    match name:
        case "some":
            return [choosing("a", acc, norm), choosing("b", acc)]
        case "torn":
            return [choosing("a", acc), choosing("b", {"metric": "acc", **DOWNWARDS})]
        case "filtered":
            return [answering("f", "strict-match", "loose", higher_is_better=True)]
        case "silent":
            return [answering("f", "none", higher_is_better=None)]
    return load_small(name, num_fewshot, seed)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "load_task", load)


def test_metrics_are_checked_by_name() -> None:
    assert higher_is_better("hellaswag", "acc_norm")
    assert higher_is_better("hellaswag", "acc")
    assert not higher_is_better("hellaswag", "bits_per_byte")
    with pytest.raises(UnknownNameError, match="did you mean 'acc_norm'"):
        higher_is_better("hellaswag", "acc_nrm")


@pytest.mark.parametrize("name", ["hellaswag", "winogrande", "copa", "mmlu_anatomy"])
def test_the_direction_of_every_metric_of_a_task_is_its_own(name: str) -> None:
    (task,) = load_task(name)
    for metric in metrics_of(task):
        stated = task.higher_is_better().get(metric, HIGHER_IS_BETTER.get(metric))
        assert higher_is_better(name, metric) == stated


def test_a_perplexity_falls(small: None) -> None:
    assert not higher_is_better("rolling", "word_perplexity")
    assert not higher_is_better("word", "perplexity")
    assert higher_is_better("word", "acc")


def test_a_metric_behind_a_filter_goes_the_way_of_the_metric(small: None) -> None:
    for metric in ("exact_match", "exact_match,strict-match", "exact_match,loose"):
        assert higher_is_better("filtered", metric)
    with pytest.raises(UnknownNameError, match=r"did you mean 'exact_match,strict-match'"):
        higher_is_better("filtered", "exact_match,strict-mtch")


def test_a_group_has_the_metrics_that_all_its_members_have(small: None) -> None:
    assert higher_is_better("some", "acc")
    with pytest.raises(UnknownNameError) as refused:
        higher_is_better("some", "acc_norm")
    assert "acc_norm" not in str(refused.value).partition("known:")[2]


def test_a_group_whose_members_differ_in_metrics_is_scored_by_those_they_share() -> None:
    model = tiny_model("llama")
    convertible = ConvertibleModel(model, family_of("llama"), merge_of("mean"))
    library = TaskLibrary(load)
    scorer = HarnessScorer(convertible, small_tokenizer(), "f", model.dtype, library=library)
    score = scorer.score((1, 4, 4), TaskSpec("some"), Documents("full"))
    assert score.n_docs == 12
    assert "acc" in score.values
    assert "acc_norm" not in score.values


@pytest.mark.parametrize(("name", "metric"), [("torn", "acc"), ("silent", "exact_match")])
def test_a_metric_whose_direction_nobody_knows_is_one_line(
    small: None, name: str, metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=f"whether a higher {metric} of {name} is better") as said:
        higher_is_better(name, metric)
    assert "\n" not in str(said.value)
