from typing import Any

import numpy as np
import pytest
from tasks.small_tasks import load_small, small_tokenizer
from tiny import tiny_model

from mqasearch.conversion import ConvertibleModel
from mqasearch.evaluation.racing import StopRule, race
from mqasearch.families import family_of
from mqasearch.mask import KVHeads, LayerMask
from mqasearch.merging import merge_of
from mqasearch.score import Documents, Score, TaskSpec
from mqasearch.scoring import FakeScorer, SharedPrefixScorer
from mqasearch.scoring.harness import HarnessScorer
from mqasearch.tasks import PreparedTask, TaskLibrary

ALL = Documents("full")


@pytest.mark.long
@pytest.mark.parametrize("kind", [HarnessScorer, SharedPrefixScorer])
@pytest.mark.parametrize("name", ["choice", "rolling", "group"])
def test_parts_grow_into_the_whole_and_a_known_beginning_is_built_upon(
    kind: type[HarnessScorer], name: str
) -> None:
    model = ConvertibleModel(
        tiny_model("llama", n_kv_heads=2), family_of("llama"), merge_of("mean")
    )
    scorer = kind(model, small_tokenizer(), "f", "float32", library=TaskLibrary(load_small))
    whole = scorer.score((1, 2, 1), TaskSpec(name), ALL)
    parts = list(scorer.score_in_parts((1, 2, 1), TaskSpec(name), ALL, 5))
    assert [part.n_docs for part in parts[:-1]] == list(range(5, whole.n_docs, 5))
    again = list(scorer.score_in_parts((1, 2, 1), TaskSpec(name), ALL, 5, parts[0]))
    for last in (parts[-1], again[-1]):
        for metric, values in whole.documents.items():
            assert last.documents[metric] == pytest.approx(values, rel=1e-5)
            assert last.values[metric] == pytest.approx(whole.values[metric], rel=1e-5)
            assert last.stderr[metric] == pytest.approx(whole.stderr[metric], rel=1e-4)
    smaller = scorer.score((1, 2, 1), TaskSpec(name), Documents("full", 5))
    assert parts[0].documents["bits_per_byte"] == pytest.approx(
        smaller.documents["bits_per_byte"], rel=1e-5
    )


@pytest.mark.parametrize("kind", [HarnessScorer, SharedPrefixScorer])
def test_of_more_documents_only_the_new_ones_are_computed(
    kind: type[HarnessScorer], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ConvertibleModel(
        tiny_model("llama", n_kv_heads=2), family_of("llama"), merge_of("mean")
    )
    scorer = kind(model, small_tokenizer(), "f", "float32", library=TaskLibrary(load_small))
    task, first = TaskSpec("choice"), Documents("full", 5)
    whole, known = (scorer.score((1, 2, 1), task, documents) for documents in (ALL, first))
    n_computed = []
    compared = scorer.compared

    def noted(kv_heads: KVHeads, prepared: PreparedTask) -> Any:
        n_computed.append(len(prepared.documents))
        return compared(kv_heads, prepared)

    monkeypatch.setattr(scorer, "compared", noted)
    *_, score = scorer.score_in_parts((1, 2, 1), task, ALL, 2**31, known)
    assert sum(n_computed) == whole.n_docs - 5
    assert {"kl", "answer_kl", "flips", "acc_norm"} <= score.values.keys()
    for metric, value in whole.values.items():
        assert score.values[metric] == pytest.approx(value, rel=1e-5)


def test_a_clearly_worse_mask_is_given_up_and_a_better_one_is_not() -> None:
    scorer = FakeScorer(n_layers=8, noise=0.2)
    task, documents = TaskSpec("any", metric="bits_per_byte"), Documents("search", 300)
    masks = [LayerMask.of([layer], 8).kv_heads(scorer.shape) for layer in range(8)]
    best, *_, worst = sorted(masks, key=scorer.loss)
    scores = {mask: scorer.score(mask, task, documents) for mask in (best, worst)}

    def raced(mask: tuple[int, ...], incumbent: tuple[int, ...]) -> Score:
        return race(
            scorer, mask, task, documents, incumbent=scores[incumbent], higher_is_better=False
        )

    assert raced(worst, best).n_docs < 300
    assert raced(best, worst).documents == scores[best].documents
    given_up = raced(worst, best)
    shorter = scorer.score(worst, task, Documents("search", given_up.n_docs))
    assert given_up.documents == shorter.documents


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_the_direction_of_the_metric_counts(higher_is_better: bool) -> None:
    rule, sign = StopRule(), 1 if higher_is_better else -1
    good = np.linspace(0.5, 1.5, 100)
    assert rule.stops(good[:50] - 0.1 * sign, good, higher_is_better)
    assert not rule.stops(good[:50] + 0.1 * sign, good, higher_is_better)
    assert not rule.stops(good[:49] - 0.1 * sign, good, higher_is_better)


@pytest.mark.parametrize("n", [60, 100, 399])
def test_a_mask_with_the_better_mean_is_kept_though_it_is_worse_on_most_documents(n: int) -> None:
    """Worse by .05 on four of five documents and better by .3 on the fifth: better by .02.

    Wilcoxon's signed-rank test, which asks another question, gives it up at p = .007.
    """
    worse = np.tile([0.05, 0.05, -0.3, 0.05, 0.05], 80)
    assert worse.mean() < 0
    assert not StopRule().stops(worse[:n], np.zeros(400), False)


@pytest.mark.long
def test_a_race_is_level_however_often_it_looks() -> None:
    """Masks that are exactly as good on all 200 documents, at up to 150 looks."""
    rng = np.random.default_rng(0)
    rule = StopRule(part=1, least=50, level=0.05)
    stopped = 0
    for _ in range(300):
        difference = rng.normal(scale=0.3, size=200)
        difference -= difference.mean()
        stopped += any(rule.stops(difference[:n], np.zeros(200), False) for n in range(50, 200))
    assert stopped / 300 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)


def test_one_answer_of_many_is_no_reason_to_stop_close_to_the_end() -> None:
    """The documents to come may make it good, however few they are."""
    values = np.zeros(58)
    values[3] = -1.0
    assert not StopRule(part=1, least=16, level=0.05).stops(values, np.zeros(60), True)
