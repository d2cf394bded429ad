"""Standard errors: against plain formulas, and against the spread over many draws of documents."""

import math

import numpy as np
import pytest
from studies_on_fake import run_study, spec_of, studies_of

from mqasearch.evaluation.evaluator import Evaluator
from mqasearch.evaluation.racing import StopRule, paired_estimate
from mqasearch.evaluation.uncertainty import difference_stderr, given_up_stderr, objective, stderrs
from mqasearch.mask import LayerMask
from mqasearch.record import Storage, trial_facts
from mqasearch.score import Documents, Score, TaskSpec
from mqasearch.scores import Claims, ScoreStore
from mqasearch.scoring import FakeScorer
from mqasearch.study import finished

TASKS = [
    TaskSpec("hellaswag", "bits_per_byte", limit=40, weight=3),
    TaskSpec("piqa", limit=60, metric="acc"),
]


def evaluator_of(storage: Storage, scorer: FakeScorer, tasks: list[TaskSpec]) -> Evaluator:
    rule = StopRule(part=25, least=50)
    return Evaluator(scorer, Claims(storage.engine, ScoreStore(storage.engine)), tasks, rule=rule)


def score_of(values: np.ndarray) -> Score:
    error = float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return Score({"m": float(values.mean())}, {"m": error}, len(values), 0.0, {"m": tuple(values)})


def test_a_trial_knows_the_errors_of_its_value_and_of_its_paired_difference(
    storage: Storage,
) -> None:
    scorer = FakeScorer(6)
    tasks = [{"name": "hellaswag", "metric": "bits_per_byte"}]
    run_study(storage, spec_of(selectors=["sensitivity"], tasks=tasks), scorer)
    (study,) = studies_of(storage)
    task, documents = TaskSpec("hellaswag"), Documents("search", 40)
    original = scorer.score(LayerMask.empty(6).kv_heads(scorer.shape), task, documents)
    for row in finished(study):
        facts = row.facts
        score = scorer.score(LayerMask.parse(facts.mask).kv_heads(scorer.shape), task, documents)
        bits = np.array(score.documents["bits_per_byte"])
        change = bits - np.array(original.documents["bits_per_byte"])
        assert facts.stderr == pytest.approx(bits.std(ddof=1) / math.sqrt(40))
        assert facts.delta_stderr == pytest.approx(change.std(ddof=1) / math.sqrt(40))
        assert facts.delta_stderr is not None
        assert facts.stderr is not None
        assert facts.delta_stderr < facts.stderr  # documents are unlike, their changes alike
        assert facts.n_docs == {"hellaswag": 40}
        assert facts.stderrs == {"hellaswag": pytest.approx(dict(score.stderr))}
    (first, *_) = finished(study)
    assert (first.facts.delta, first.facts.delta_stderr) == (0.0, 0.0)  # the original itself


def test_errors_of_several_tasks_add_up_by_their_weights(storage: Storage) -> None:
    evaluator = evaluator_of(storage, FakeScorer(6), TASKS)
    evaluation = evaluator.evaluate(LayerMask.of([1, 4], 6))
    original = evaluator.original()
    parts, paired = [], []
    for task in TASKS:
        score, of_original = evaluation.scores[task.name], original.scores[task.name]
        change = np.array(score.documents[task.metric]) - of_original.documents[task.metric]
        parts.append(task.weight * score.stderr[task.metric])
        paired.append(task.weight * change.std(ddof=1) / math.sqrt(score.n_docs))
    assert evaluation.stderr == pytest.approx(math.hypot(*parts) / 4)
    delta = evaluator.against_original(evaluation)
    assert delta.value == evaluation.value - original.value
    assert delta.stderr == pytest.approx(math.hypot(*paired) / 4)


def test_the_original_is_scored_once_however_often_one_compares(storage: Storage) -> None:
    scorer = FakeScorer(6)
    evaluator = evaluator_of(storage, scorer, TASKS[:1])
    for layer in range(3):
        evaluator.against_original(evaluator.evaluate(LayerMask.of([layer], 6)))
    assert scorer.n_scored == 4


def test_a_metric_that_is_no_mean_over_documents_has_no_paired_error() -> None:
    """A perplexity's documents average to another number than its own."""
    values = {"word_perplexity": 20.0}
    documents = {"word_perplexity": (18.0, 25.0, 40.0)}
    score = Score(values, {"word_perplexity": 2.0}, 3, 0.0, documents)
    task = TaskSpec("wikitext", metric="word_perplexity")
    assert objective([task], {"wikitext": score}).stderr == 2.0
    assert difference_stderr([task], {"wikitext": score}, {"wikitext": score}) is None
    bare = Score(values, {"word_perplexity": 2.0}, 3, 0.0, {})
    assert difference_stderr([task], {"wikitext": bare}, {"wikitext": bare}) is None


def test_what_is_unknown_of_one_task_is_unknown_of_the_objective() -> None:
    tasks = [TaskSpec(name, metric="m") for name in "ab"]
    scores = {"a": score_of(np.array([1.0, 2.0])), "b": score_of(np.array([1.0]))}
    assert objective(tasks, scores).stderr is None  # one document has no standard error
    assert objective(tasks, scores).value == 1.25
    assert difference_stderr(tasks, scores, scores) is None


@pytest.mark.parametrize("error", [math.nan, math.inf])
def test_an_error_that_is_no_number_is_unknown(error: float) -> None:
    assert stderrs(Score({"m": 1.0}, {"m": error}, 5, 0.0, {})) == {"m": None}


def test_of_a_mask_that_was_given_up_the_error_is_the_spread_of_its_estimate() -> None:
    """Over many draws of documents, of the value and of its difference to the original."""
    rng = np.random.default_rng(0)
    n, total, draws = 50, 200, 2000
    estimates, errors = [], []
    for _ in range(draws):
        difficulty = rng.normal(size=total)
        original = difficulty + rng.normal(scale=0.1, size=total)
        incumbent = difficulty * 1.1 + rng.normal(scale=0.3, size=total)
        lost = difficulty[:n] * 1.3 + 0.5 + rng.normal(scale=0.5, size=n)
        score, against, reference = map(score_of, (lost, incumbent, original))
        value = paired_estimate(score, against, "m")
        estimates.append((value, value - reference.values["m"]))
        errors.append(
            (given_up_stderr(score, against, "m"), given_up_stderr(score, against, "m", reference))
        )
    spread = np.std(estimates, axis=0, ddof=1)
    assert np.sqrt(np.square(errors).mean(axis=0)) == pytest.approx(spread, rel=0.08)


def test_a_race_to_the_last_document_has_the_error_of_all_documents() -> None:
    rng = np.random.default_rng(1)
    score, against, original = (score_of(rng.normal(size=30)) for _ in range(3))
    assert given_up_stderr(score, against, "m") == pytest.approx(score.stderr["m"])
    tasks = [TaskSpec("t", metric="m")]
    assert given_up_stderr(score, against, "m", original) == pytest.approx(
        difference_stderr(tasks, {"t": score}, {"t": original})
    )


def test_masks_that_were_given_up_have_their_errors_too(storage: Storage) -> None:
    spec = spec_of(
        selectors=[{"name": "random", "n_trials": 12}],
        documents={"search": 200, "confirmation": 20},
        pruner="wilcoxon",
    )
    run_study(storage, spec, FakeScorer(8, noise=0.2))
    (study,) = studies_of(storage)
    rows = [facts for trial in study.trials if (facts := trial_facts(trial)) is not None]
    lost = [facts for facts in rows if facts.given_up is not None]
    assert lost
    for facts in lost:
        assert facts.n_docs == {"hellaswag": facts.given_up}
        assert facts.stderr
        assert facts.delta_stderr
        least = min(row.stderr or math.inf for row in rows if row.given_up is None)
        assert facts.stderr > 0.5 * least
