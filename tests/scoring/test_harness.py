import copy
import json
import math
from typing import Any

import pytest
import torch
from scoring.stock import average_heads, stock_samples
from tasks.small_tasks import load_small, small_task, small_tokenizer
from tiny import tiny_model

from mqasearch.conversion import ConvertibleModel
from mqasearch.errors import MaskError, ScoreError
from mqasearch.families import family_of
from mqasearch.forward import Answer, TokenPair
from mqasearch.mask import LayerMask
from mqasearch.merging import merge_of
from mqasearch.models import load_model
from mqasearch.score import Documents, TaskSpec
from mqasearch.scoring.harness import HarnessScorer, ResidentLM
from mqasearch.tasks import TaskLibrary, calibration_tokens, score_of
from mqasearch.tasks.prepared import LoadedTask

KINDS = ["choice", "long", "word", "rolling", "generate", "contexts"]
ALL = Documents("full")


@pytest.fixture
def scorer() -> HarnessScorer:
    model = tiny_model("llama", n_kv_heads=2)
    convertible = ConvertibleModel(model, family_of("llama"), merge_of("mean"))
    library = TaskLibrary(load_small)
    return HarnessScorer(convertible, small_tokenizer(), "f", model.dtype, library=library)


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kv_heads", [(2, 2, 2), (1, 2, 1)])
def test_every_type_of_task_scores_as_in_lm_eval(
    scorer: HarnessScorer, kind: str, kv_heads: tuple[int, ...]
) -> None:
    score = scorer.score(kv_heads, TaskSpec(kind), ALL)
    model = copy.deepcopy(scorer.convertible.model)
    average_heads(model, [layer for layer, heads in enumerate(kv_heads) if heads == 1])
    task = small_task(kind)
    samples = stock_samples(model, small_tokenizer(), task, range(12))
    prepared = scorer.library.task(TaskSpec(kind), ALL).prepare(ALL)
    ordered = [samples[document.instances[0].doc_id] for document in prepared.documents]
    for metric, aggregate in task.aggregation().items():
        items = [sample[metric] for sample in ordered]
        assert score.values[metric] == pytest.approx(aggregate(items), rel=1e-5)
        assert score.documents[metric] == pytest.approx([aggregate([i]) for i in items], rel=1e-5)


def test_scoring_leaves_the_original_model_and_repeats_itself(scorer: HarnessScorer) -> None:
    before = {n: p.clone() for n, p in scorer.convertible.model.state_dict().items()}
    first = scorer.score((1, 1, 1), TaskSpec("choice"), ALL)
    scorer.score((2, 1, 2), TaskSpec("choice"), ALL)
    again = scorer.score((1, 1, 1), TaskSpec("choice"), ALL)
    assert first.documents == again.documents
    after = scorer.convertible.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("kind", ["choice", "rolling"])
def test_the_token_requests_are_those_the_model_is_asked_and_can_be_had_at_any_time(
    scorer: HarnessScorer, kind: str
) -> None:
    prepared = scorer.library.task(TaskSpec(kind), ALL).prepare(ALL)
    instance, *_ = prepared.instances
    asked: list[TokenPair] = []
    heard: list[TokenPair] = []

    class Asked(ResidentLM):
        def _loglikelihood_tokens(self, requests: Any, *args: Any, **options: Any) -> list[Answer]:
            asked.extend((tuple(context), tuple(rest)) for _, context, rest in requests)
            heard[:] = self.token_pairs(instance)  # while it is answering
            return super()._loglikelihood_tokens(requests, *args, **options)

    lm = Asked(scorer.convertible.model, small_tokenizer(), batch_size=1)
    answers = getattr(lm, instance.request_type)([instance], disable_tqdm=True)
    assert heard == asked != []
    assert answers == getattr(scorer.lm, instance.request_type)([instance], disable_tqdm=True)


def test_a_group_is_one_benchmark_weighted_by_size(scorer: HarnessScorer) -> None:
    score = scorer.score((1, 2, 2), TaskSpec("group"), ALL)
    assert score.n_docs == 30
    assert score.values["acc"] == pytest.approx(sum(score.documents["acc"]) / 30)
    part = scorer.score((1, 2, 2), TaskSpec("group"), Documents("full", 11))
    assert score.documents["acc"][:11] == part.documents["acc"]
    names = {d.task.task_name for d in LoadedTask("group", load=load_small).in_order(ALL)}
    assert names == {"one", "two"}


def test_the_prompt_of_a_document_does_not_depend_on_which_others_are_scored() -> None:
    def prompts(limit: int | None, seed: int = 0) -> list[str]:
        documents = Documents("full", limit, seed)
        loaded = LoadedTask("choice", 3, seed, load_small)
        return [d.instances[0].args[0] for d in loaded.in_order(documents)]

    assert prompts(None)[:5] == prompts(5)
    assert prompts(5)[0].count("\n\n") == 3
    assert sorted(prompts(None)) != sorted(prompts(None, seed=1))


def test_the_continuous_metrics_follow_their_definition(scorer: HarnessScorer) -> None:
    score = scorer.score((2, 1, 2), TaskSpec("choice"), ALL)
    prepared = scorer.library.task(TaskSpec("choice"), ALL).prepare(ALL)
    responses = scorer.responses((2, 1, 2), prepared)
    for place, document in enumerate(prepared.documents):
        choices, gold = document.document["choices"], document.document["gold"]
        per_byte = [
            likelihood / len(choice.encode())
            for (likelihood, _), choice in zip(responses[place], choices, strict=True)
        ]
        bits = -per_byte[gold] / math.log(2)
        total = sum(math.exp(value) for value in per_byte)
        entropy = -math.log(math.exp(per_byte[gold]) / total)
        assert score.documents["bits_per_byte"][place] == pytest.approx(bits)
        assert score.documents["choice_cross_entropy"][place] == pytest.approx(entropy)


def test_the_key_tells_apart_what_changes_a_score(scorer: HarnessScorer) -> None:
    keys = {
        scorer.key(kv_heads, TaskSpec(kind, num_fewshot=shots), documents).digest()
        for kv_heads in [(2, 2, 2), (1, 2, 2)]
        for kind in ["choice", "word"]
        for shots in [0, 2]
        for documents in [ALL, Documents("full", 5), Documents("search"), Documents("full", 5, 1)]
    }
    assert len(keys) == 2 * 2 * 2 * 4
    one, two = (TaskSpec("choice", metric=metric) for metric in ("acc", "bits_per_byte"))
    assert scorer.key((1, 1, 1), one, ALL) == scorer.key((1, 1, 1), two, ALL)
    more = Documents("full", 99)
    assert scorer.key((1, 1, 1), one, ALL) == scorer.key((1, 1, 1), one, more)


def test_a_score_that_is_not_a_number_is_an_error(scorer: HarnessScorer) -> None:
    with torch.no_grad():
        scorer.convertible.model.lm_head.weight.fill_(torch.nan)
    for kind in ["choice", "rolling"]:
        with pytest.raises(ScoreError, match=f"{kind}: a log-likelihood is nan"):
            scorer.score((2, 2, 2), TaskSpec(kind), ALL)


def test_a_mask_of_another_model_is_refused(scorer: HarnessScorer) -> None:
    with pytest.raises(MaskError, match="4 layers"):
        scorer.score((2, 2, 2, 2), TaskSpec("choice"), ALL)


def test_calibration_texts_are_documents_that_nothing_else_uses() -> None:
    tokenizer = small_tokenizer()
    library = TaskLibrary(load_small)
    sequences = calibration_tokens(tokenizer, ["group", TaskSpec("word")], 60, library=library)
    assert sum(map(len, sequences)) == 60
    texts = [tokenizer.decode(sequence) for sequence in sequences[:-1]]  # the last one is cut
    used = json.dumps(
        [
            document.instances[0].args
            for kind in ("group", "word")
            for split in ("search", "confirmation")
            for document in library.task(TaskSpec(kind), ALL).in_order(Documents(split))
        ]
    )
    assert all(text not in used for text in texts)
    everything = calibration_tokens(tokenizer, ["word"], 10**6, library=library)
    assert 0 < sum(map(len, everything)) < 1_000


@pytest.mark.model
@pytest.mark.parametrize(("name", "limit"), [("arc_easy", 2), ("winogrande", 4)])
def test_law_a_real_model_scores_as_stock_lm_eval_says(name: str, limit: int) -> None:
    """Accuracy, acc_norm and every log-likelihood, for several masks, in float32."""
    loaded = load_model("smollm2-135m", device="cpu", dtype="float32")
    model = loaded.model
    convertible = ConvertibleModel(model, family_of("llama"), merge_of("mean"))
    scorer = HarnessScorer(convertible, loaded.tokenizer, loaded.fingerprint, loaded.dtype)
    documents = Documents("search", limit)
    loaded_task = scorer.library.task(TaskSpec(name), documents)
    prepared, stock_task = loaded_task.prepare(documents), loaded_task.tasks[0]
    rows = [document.instances[0].doc_id for document in prepared.documents]
    for mask in [LayerMask.empty(30), LayerMask.of([20, 25], 30), LayerMask.of([0, 7, 29], 30)]:
        responses = scorer.responses(mask.kv_heads(scorer.shape), prepared)
        score = score_of(prepared, responses, 0.0)
        converted = copy.deepcopy(model)
        average_heads(converted, mask.layers)
        samples = stock_samples(converted, loaded.tokenizer, stock_task, rows)
        ours = [answer for answers in responses for answer in answers]
        theirs = [answers[0] for row in rows for answers in samples[row]["resps"]]
        assert [a for a, _ in ours] == pytest.approx([a for a, _ in theirs], abs=1e-4)
        assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
        for metric in stock_task.aggregation():
            assert score.documents[metric] == tuple(samples[row][metric] for row in rows)
