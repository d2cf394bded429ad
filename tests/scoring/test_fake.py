import numpy as np
import pytest

from mqasearch.errors import MaskError, ScoreError
from mqasearch.mask import LayerMask
from mqasearch.score import Documents, TaskSpec
from mqasearch.scoring.fake import FakeScorer
from mqasearch.scoring.scorer import Scorer
from mqasearch.statistics import paired_difference

TASK = TaskSpec("hellaswag")
DOCUMENTS = Documents("search", 200)


def heads(scorer: FakeScorer, *layers: int) -> tuple[int, ...]:
    return LayerMask.of(layers, scorer.shape.n_layers).kv_heads(scorer.shape)


def test_it_is_a_scorer_and_two_of_a_seed_agree() -> None:
    one, two = FakeScorer(seed=5), FakeScorer(seed=5)
    scorer: Scorer = one
    mask = heads(one, 1, 4)
    first, second = (s.score(mask, TASK, DOCUMENTS) for s in (scorer, two))
    assert first.documents == second.documents
    assert one.key(mask, TASK, DOCUMENTS) == two.key(mask, TASK, DOCUMENTS)
    assert FakeScorer(seed=6).score(mask, TASK, DOCUMENTS).values != first.values


def test_the_mean_over_documents_estimates_the_true_loss() -> None:
    scorer = FakeScorer(n_layers=8)
    original = scorer.score(heads(scorer), TASK, DOCUMENTS)
    for layers in [(0,), (3, 5), (0, 1, 2, 6, 7)]:
        mask = heads(scorer, *layers)
        score = scorer.score(mask, TASK, DOCUMENTS)
        metric = "bits_per_byte"
        found = paired_difference(score.documents[metric], original.documents[metric])
        width = found.ci95[1] - found.value
        assert abs(found.value - scorer.loss(mask)) < 2 * width
        assert score.values[metric] == pytest.approx(np.mean(score.documents[metric]))


def test_kl_estimates_the_same_loss_with_less_noise() -> None:
    scorer = FakeScorer(n_layers=8)
    original = scorer.score(heads(scorer), TASK, DOCUMENTS)
    assert {original.values[metric] for metric in ("kl", "answer_kl", "flips")} == {0.0}
    for layers in [(0,), (3, 5), (0, 1, 2, 6, 7)]:
        mask = heads(scorer, *layers)
        score = scorer.score(mask, TASK, DOCUMENTS)
        assert abs(score.values["kl"] - scorer.loss(mask)) < 4 * score.stderr["kl"]
        bits = paired_difference(
            score.documents["bits_per_byte"], original.documents["bits_per_byte"]
        )
        assert 2 * score.stderr["kl"] < bits.ci95[1] - bits.value


def test_a_smaller_limit_is_a_prefix_and_splits_differ() -> None:
    scorer = FakeScorer()
    mask = heads(scorer, 2)
    small, large = (scorer.score(mask, TASK, Documents("search", n)) for n in (20, 90))
    assert large.documents["acc"][:20] == small.documents["acc"]
    other = scorer.score(mask, TASK, Documents("confirmation", 20))
    assert other.documents["bits_per_byte"] != small.documents["bits_per_byte"]


def test_the_best_single_layers_are_not_always_the_best_pair() -> None:
    """Otherwise a ranking would always win and no selector could be told from another."""
    surprises = 0
    for seed in range(20):
        scorer = FakeScorer(n_layers=8, seed=seed)
        single = sorted(range(8), key=lambda layer: scorer.loss(heads(scorer, layer)))
        pairs = [(a, b) for a in range(8) for b in range(a + 1, 8)]
        best = min(pairs, key=lambda pair: scorer.loss(heads(scorer, *pair)))
        surprises += set(best) != set(single[:2])
    assert 0 < surprises < 20


def test_what_cannot_be_scored() -> None:
    scorer = FakeScorer(n_layers=6, diverging=(2,))
    with pytest.raises(ScoreError, match="nan"):
        scorer.score(heads(scorer, 2), TASK, DOCUMENTS)
    assert scorer.score(heads(scorer, 3), TASK, DOCUMENTS).n_docs == 200
    with pytest.raises(MaskError, match="7 layers"):
        scorer.score((1,) * 7, TASK, DOCUMENTS)
