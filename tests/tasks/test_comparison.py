import copy
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tasks.small_tasks import load_small, small_tokenizer
from tiny import DEVICE, GROUPED, MODEL_TYPES, tiny_model
from transformers import PreTrainedModel

from mqasearch.conversion import ConvertibleModel
from mqasearch.errors import UnknownNameError
from mqasearch.families import family_of
from mqasearch.forward import ReferenceStore
from mqasearch.mask import KVHeads
from mqasearch.merging import merge_of
from mqasearch.score import Documents, Score, TaskSpec
from mqasearch.scoring import SharedPrefixScorer
from mqasearch.scoring.harness import HarnessScorer
from mqasearch.tasks.metrics import higher_is_better
from mqasearch.tasks.prepared import PreparedDocument, TaskLibrary

ALL = Documents("full")
KINDS = ["choice", "long", "word", "rolling", "contexts", "group"]
LIBRARY = TaskLibrary(load_small)
TOKENIZER = small_tokenizer()
MAX_LENGTH = 128
CLOSE = 1e-5


@cache
def convertible(model_type: str) -> ConvertibleModel:
    model = tiny_model(model_type, n_kv_heads=2 if model_type in GROUPED else None)
    return ConvertibleModel(model, family_of(model_type), merge_of("mean"))


@cache
def separate(model_type: str, kv_heads: KVHeads) -> PreTrainedModel:
    """A model of its own, which shares nothing with any other."""
    with convertible(model_type).converted(kv_heads) as model:
        return copy.deepcopy(model)


def scorer_of(kind: type[HarnessScorer], model_type: str = "llama", **options: Any) -> Any:
    model = convertible(model_type)
    return kind(model, small_tokenizer(), "f", model.model.dtype, library=LIBRARY, **options)


def heads(model_type: str, flags: tuple[bool, ...]) -> KVHeads:
    shape = convertible(model_type).shape
    return tuple(1 if flag else shape.n_kv_heads for flag in flags)


def right_request(document: PreparedDocument) -> Any:
    """The request of the document's right answer, by its own data."""
    if document.task.OUTPUT_TYPE != "multiple_choice":
        return document.instances[0]
    return document.instances[document.document["gold"]]


def texts(document: PreparedDocument) -> list[tuple[list[int], int, int]]:
    """Tokens to run, and how many of the last predictions count: of everything, of the answer."""
    request = right_request(document)
    if request.request_type == "loglikelihood_rolling":
        windows = get_rolling_token_windows(
            TOKENIZER.encode(request.args[0]), TOKENIZER.bos_token_id, MAX_LENGTH, 1
        )
        disjoint = (make_disjoint_window(window) for window in windows)
        return [([*context, *rest][:-1], len(rest), len(rest)) for context, rest in disjoint]
    context, continuation = request.args
    tokens = TOKENIZER.encode(context + continuation)
    n_answer = len(tokens) - len(TOKENIZER.encode(context.rstrip()))
    window = tokens[-(MAX_LENGTH + 1) :][:-1]
    return [(window, len(window), n_answer)]


@cache
def plain(model_type: str, kind: str, flags: tuple[bool, ...]) -> tuple[np.ndarray, np.ndarray]:
    """kl and answer_kl of every document by two separate models, one text at a time."""
    before, after = (
        separate(model_type, heads(model_type, these)) for these in ((False,) * 3, flags)
    )
    rows = []
    for document in LIBRARY.task(TaskSpec(kind), ALL).prepare(ALL).documents:
        sums = np.zeros(4)
        for window, n_counted, n_answer in texts(document):
            with torch.no_grad():
                one, two = (
                    model(torch.tensor([window], device=DEVICE), use_cache=False)
                    .logits[0]
                    .log_softmax(-1)
                    for model in (before, after)
                )
            apart = torch.nn.functional.kl_div(two, one, log_target=True, reduction="none")
            per_token = apart.sum(-1).double()
            sums += [
                float(per_token[-n_counted:].sum()),
                n_counted,
                float(per_token[-n_answer:].sum()),
                n_answer,
            ]
        rows.append((sums[0] / sums[1], sums[2] / sums[3]))
    return tuple(np.array(rows).T)  # type: ignore[return-value]


def check(score: Score, model_type: str, kind: str, flags: tuple[bool, ...]) -> None:
    kl, answer_kl = plain(model_type, kind, flags)
    assert score.documents["kl"] == pytest.approx(kl, abs=CLOSE)
    assert score.values["kl"] == pytest.approx(kl.mean(), abs=CLOSE)
    if kind == "rolling":  # a text has no answer
        assert "answer_kl" not in score.values
    else:
        assert score.documents["answer_kl"] == pytest.approx(answer_kl, abs=CLOSE)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_law_the_reference_scorer_compares_as_two_plain_models(model_type: str, kind: str) -> None:
    scorer = scorer_of(HarnessScorer, model_type)
    for flags in [(True, False, True), (False, False, True)]:
        score = scorer.score(heads(model_type, flags), TaskSpec(kind), ALL)
        check(score, model_type, kind, flags)


@settings(max_examples=40, deadline=None)
@given(
    model_type=st.sampled_from(MODEL_TYPES),
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=2),
    masks=st.lists(st.tuples(*[st.booleans()] * 3), min_size=1, max_size=5),
    batch_tokens=st.sampled_from([1, 40, 1024]),
    row_tokens=st.sampled_from([8, 60, 400]),
    state_bytes=st.sampled_from([0, 150_000, 10**9]),
    reference_bytes=st.sampled_from([0, 40_000, 120_000, 10**9]),
)
def test_law_any_masks_in_any_order_compare_as_two_plain_models(
    model_type: str,
    kinds: list[str],
    masks: list[tuple[bool, ...]],
    batch_tokens: int,
    row_tokens: int,
    state_bytes: int,
    reference_bytes: int,
) -> None:
    scorer = scorer_of(
        SharedPrefixScorer,
        model_type,
        batch_tokens=batch_tokens,
        row_tokens=row_tokens,
        state_bytes=state_bytes,
        reference_bytes=reference_bytes,
    )
    for number, flags in enumerate(masks):
        kind = kinds[number % len(kinds)]
        score = scorer.score(heads(model_type, flags), TaskSpec(kind), ALL)
        check(score, model_type, kind, flags)
        assert scorer.lm.references.used <= reference_bytes


@settings(max_examples=12, deadline=None)
@given(
    model_type=st.sampled_from(MODEL_TYPES),
    kind=st.sampled_from(KINDS),
    masks=st.lists(st.tuples(*[st.booleans()] * 3), min_size=1, max_size=6),
    reference_bytes=st.sampled_from([0, 40_000, 10**9]),
)
def test_law_many_at_once_compare_as_two_plain_models(
    model_type: str, kind: str, masks: list[tuple[bool, ...]], reference_bytes: int
) -> None:
    scorer = scorer_of(SharedPrefixScorer, model_type, reference_bytes=reference_bytes)
    kv_heads = [heads(model_type, flags) for flags in masks]
    for score, flags in zip(scorer.score_many(kv_heads, TaskSpec(kind), ALL), masks, strict=True):
        check(score, model_type, kind, flags)


def test_few_examples_in_the_prompt_share_places_between_documents() -> None:
    task = TaskSpec("choice", num_fewshot=2)
    fast, slow = (
        scorer_of(kind).score((1, 2, 1), task, ALL) for kind in (SharedPrefixScorer, HarnessScorer)
    )
    for metric in ("kl", "answer_kl", "flips"):
        assert fast.documents[metric] == pytest.approx(slow.documents[metric], abs=CLOSE)


@pytest.mark.parametrize("kind", [HarnessScorer, SharedPrefixScorer])
def test_parts_and_the_whole_agree(kind: type[HarnessScorer]) -> None:
    scorer = scorer_of(kind)
    whole = scorer.score((1, 1, 2), TaskSpec("choice"), ALL)
    *_, parts = scorer.score_in_parts((1, 1, 2), TaskSpec("choice"), ALL, 5)
    for metric in ("kl", "answer_kl", "flips"):
        assert parts.documents[metric] == pytest.approx(whole.documents[metric], abs=CLOSE)


@pytest.mark.parametrize("kind", [HarnessScorer, SharedPrefixScorer])
def test_the_original_differs_from_itself_in_nothing(kind: type[HarnessScorer]) -> None:
    score = scorer_of(kind).score((2, 2, 2), TaskSpec("choice"), ALL)
    for metric in ("kl", "answer_kl", "flips"):
        assert set(score.documents[metric]) == {0.0}
        assert score.stderr[metric] == 0.0


@pytest.mark.parametrize("kind", [HarnessScorer, SharedPrefixScorer])
def test_flips_are_answers_that_changed(kind: type[HarnessScorer]) -> None:
    scorer = scorer_of(kind)
    for name in ("choice", "contexts"):
        prepared = LIBRARY.task(TaskSpec(name), ALL).prepare(ALL)
        before, after = (scorer.responses(kv, prepared) for kv in ((2, 2, 2), (1, 1, 1)))
        expected = []
        for document, *both in zip(prepared.documents, before, after, strict=True):
            choices = document.task.doc_to_choice(document.document)
            sizes = [len(c) for c in choices] if name == "choice" else [1] * len(choices)
            picks = [
                max(range(len(sizes)), key=lambda i, a=answers: a[i][0] / sizes[i])
                for answers in both
            ]
            expected.append(float(picks[0] != picks[1]))
        score = scorer.score((1, 1, 1), TaskSpec(name), ALL)
        assert score.documents["flips"] == tuple(expected)
        assert 0 < sum(expected) < len(expected)


def test_what_a_reference_keeps_goes_by_what_fits() -> None:
    kinds = []
    for budget in (10**9, 100_000, 100):
        scorer = scorer_of(SharedPrefixScorer, reference_bytes=budget)
        scorer.score((1, 2, 2), TaskSpec("choice"), ALL)
        (plan,) = scorer.lm.used_plans
        references: ReferenceStore = scorer.lm.references
        kinds.append(references.kind(plan))
        assert references.has(plan) is (kinds[-1] is not None)
    assert kinds == ["logits", "hidden", None]


def test_keeping_the_original_saves_running_it_again() -> None:
    cost = []
    for budget in (10**9, 0):
        scorer = scorer_of(SharedPrefixScorer, reference_bytes=budget, state_bytes=0)
        scorer.score((2, 2, 2), TaskSpec("choice"), ALL)
        before = scorer.lm.resumable.layer_tokens
        scorer.score((1, 2, 2), TaskSpec("choice"), ALL)
        cost.append(scorer.lm.resumable.layer_tokens - before)
    assert cost[1] == 2 * cost[0]


def test_a_generation_task_says_which_metrics_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mqasearch.tasks.metrics.load_task", load_small)
    with pytest.raises(UnknownNameError, match=r"metric of generate 'kl'.*known: exact_match"):
        higher_is_better("generate", "kl")
    for kind in KINDS:
        assert not higher_is_better(kind, "kl")
