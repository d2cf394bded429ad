"""What a worker need not compute: scored ahead, or on fewer documents, or clearly worse."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from optuna.trial import TrialState
from studies_on_fake import run_study, spec_of, storage_in, studies_of

from mqasearch.creation import create_studies
from mqasearch.evaluation.evaluator import Evaluation, Evaluator
from mqasearch.evaluation.racing import StopRule
from mqasearch.mask import KVHeads, LayerMask
from mqasearch.record import Storage, trial_facts
from mqasearch.score import Documents, NoScore, Score, TaskSpec
from mqasearch.scores import Claims, ScoreStore
from mqasearch.scoring import FakeScorer
from mqasearch.study import best_trial, compare, finished

TASK = TaskSpec("hellaswag", limit=200)


class ManyScorer(FakeScorer):
    """Gains from many, and says which were scored together."""

    def __init__(self, n_layers: int, **settings: object) -> None:
        super().__init__(n_layers, **settings)  # type: ignore[arg-type]
        self.together: list[Sequence[KVHeads]] = []
        self.n_docs_scored = 0

    def score(self, kv_heads: KVHeads, task: TaskSpec, documents: Documents) -> Score:
        self.n_docs_scored += self._n_docs(documents)
        return super().score(kv_heads, task, documents)

    def score_many(
        self, masks: Sequence[KVHeads], task: TaskSpec, documents: Documents
    ) -> list[Score | NoScore]:
        self.together.append(masks)
        return super().score_many(masks, task, documents)

    def gains_from_many(self) -> bool:
        return True


def evaluator_of(storage: Storage, scorer: FakeScorer, rule: StopRule | None = None) -> Evaluator:
    claims = Claims(storage.engine, ScoreStore(storage.engine))
    return Evaluator(scorer, claims, [TASK], rule=rule)


def mask(*layers: int) -> LayerMask:
    return LayerMask.of(layers, 6)


@pytest.mark.parametrize("selectors", [["sensitivity"], ["exhaustive"], ["sensitivity", "greedy"]])
def test_scoring_ahead_changes_no_result(tmp_path: Path, selectors: list[str]) -> None:
    rows = []
    for name, scorer in (("alone", FakeScorer(6)), ("many", ManyScorer(6))):
        (tmp_path / name).mkdir()
        storage = storage_in(tmp_path / name)
        run_study(storage, spec_of(selectors=selectors), scorer)
        rows.append(
            [(r.mask, r.value, r.n_trials, r.n_scored) for r in compare(studies_of(storage))]
        )
        masks = {row.facts.mask for study in studies_of(storage) for row in finished(study)}
        confirmed = {row.mask for row in compare(studies_of(storage))} | {"0" * 6}
        assert scorer.n_scored == len(masks) + len(confirmed)  # nothing twice
        storage.close()
    assert rows[0] == rows[1]
    assert isinstance(scorer, ManyScorer)
    assert max(map(len, scorer.together)) > 4


def test_a_mask_at_fault_does_not_cost_those_scored_with_it(storage: Storage) -> None:
    scorer = ManyScorer(6, diverging=(2,))
    run_study(storage, spec_of(selectors=["sensitivity"]), scorer)
    (study,) = studies_of(storage)
    failed = study.get_trials(states=(TrialState.FAIL,))
    assert [trial.user_attrs["mqasearch:mask"] for trial in failed] == [str(mask(2))]
    assert {str(mask(layer)) for layer in (0, 1, 3, 4, 5)} <= {
        row.facts.mask for row in finished(study)
    }


def test_what_others_have_in_hand_is_not_scored_ahead_and_not_preferred(storage: Storage) -> None:
    scorer = ManyScorer(6)
    mine, theirs = evaluator_of(storage, scorer), evaluator_of(storage, FakeScorer(6))
    taken = mine.scorer.key(mask(1).kv_heads(scorer.shape), TASK, mine.search_documents(TASK))
    assert theirs.claims.claim(taken.digest())
    mine.evaluate(mask())  # tells how long a mask takes
    mine.evaluate(mask(0), [mask(1), mask(2)])
    assert [len(masks) for masks in scorer.together] == [2]
    assert mine.claims.store.get(taken) is None
    assert mine.cheapest([mask(1), mask(3)]) == mask(3)
    assert mine.cheapest([mask(1)]) == mask(1)
    assert theirs.cheapest([mask(1), mask(3)]) == mask(1)


def test_what_is_scored_in_part_is_not_scored_ahead(storage: Storage) -> None:
    scorer = ManyScorer(6)
    evaluator = evaluator_of(storage, scorer)
    fewer = Documents("search", 50)
    begun = scorer.key(mask(1).kv_heads(scorer.shape), TASK, fewer)
    evaluator.claims.store.put(begun, scorer.score(begun.kv_heads, TASK, fewer))
    evaluator.evaluate(mask())  # tells how long a mask takes
    evaluator.evaluate(mask(0), [mask(1), mask(2)])
    heads = [m.kv_heads(scorer.shape) for m in (mask(0), mask(2))]
    assert [list(masks) for masks in scorer.together] == [heads]


def test_the_mask_of_which_most_is_known_is_preferred(storage: Storage) -> None:
    class Keeping(FakeScorer):
        def saved_layer_tokens(self, kv_heads: KVHeads) -> int:
            return kv_heads.index(1) if 1 in kv_heads else 0

    run_study(storage, spec_of(selectors=["sensitivity"]), Keeping(6))
    (study,) = studies_of(storage)
    alone = [r.facts.mask for r in finished(study) if r.facts.n_converted == 1]
    assert alone == [str(mask(layer)) for layer in (5, 4, 3, 2, 1, 0)]


def test_a_larger_limit_goes_on_from_a_smaller_one(storage: Storage) -> None:
    scorer = ManyScorer(6)
    run_study(storage, spec_of(selectors=["sensitivity"], documents={"search": 40}), scorer)
    masks = {row.facts.mask for row in finished(studies_of(storage)[0])}
    scorer = ManyScorer(6)
    spec = spec_of(name="longer", selectors=["sensitivity"], documents={"search": 60})
    known: list[int] = []
    parts = scorer.score_in_parts

    def noted(*arguments, **settings):  # type: ignore[no-untyped-def]
        known.append(arguments[4].n_docs)
        return parts(*arguments, **settings)

    scorer.score_in_parts = noted  # type: ignore[method-assign]
    run_study(storage, spec, scorer)
    longer = {row.facts.mask for row in finished(studies_of(storage, "longer")[0])}
    assert known.count(40) == len(masks & longer)


def test_what_was_spent_before_is_not_spent_again(storage: Storage) -> None:
    class Timed(FakeScorer):
        def score(self, kv_heads: KVHeads, task: TaskSpec, documents: Documents) -> Score:
            return replace(super().score(kv_heads, task, documents), seconds=1.0)

    def evaluation(limit: int) -> Evaluation:
        claims = Claims(storage.engine, ScoreStore(storage.engine))
        return Evaluator(Timed(6), claims, [replace(TASK, limit=limit)]).evaluate(mask(1))

    assert evaluation(40).seconds == 1.0
    longer = evaluation(60)
    assert longer.seconds == 1.0
    assert longer.scores["hellaswag"].seconds == 2.0
    assert evaluation(60).seconds == 0.0


def test_a_race_gives_up_what_is_clearly_worse_and_keeps_what_it_found(storage: Storage) -> None:
    scorer = ManyScorer(6, noise=0.2)
    rule = StopRule(part=25, least=50)
    evaluator = evaluator_of(storage, scorer, rule)
    ranked = sorted(
        (mask(layer) for layer in range(6)), key=lambda m: scorer.loss(m.kv_heads(scorer.shape))
    )
    best, worst = ranked[0], ranked[-1]
    full = evaluator.evaluate(best)
    lost = evaluator.race(worst, best)
    assert lost.given_up is not None
    assert lost.given_up < 200
    assert lost.scores["hellaswag"].n_docs == lost.given_up
    assert lost.value > full.value
    truth = evaluator_of(storage, FakeScorer(6, noise=0.2)).evaluate(worst)
    assert lost.value == pytest.approx(truth.value, abs=0.05)
    # a tie is raced to the end, and equals what scoring in full gives
    won = evaluator.race(best, worst)
    assert won.given_up is None
    assert won.value == full.value


def test_nobody_races_the_same_mask_again(storage: Storage) -> None:
    scorer = ManyScorer(6, noise=0.2)
    best, worst = mask(), mask(0, 1, 2, 3)
    first = evaluator_of(storage, scorer, StopRule())
    first.evaluate(best)
    lost = first.race(worst, best)
    assert not lost.reused
    n_scored = scorer.n_scored
    again = evaluator_of(storage, scorer, StopRule()).race(worst, best)
    assert scorer.n_scored == n_scored
    assert again.reused
    assert (again.value, again.given_up) == (lost.value, lost.given_up)


def test_a_study_with_a_pruner_finds_the_same_mask_for_less(tmp_path: Path) -> None:
    best, documents = [], []
    for name, pruner in (("full", None), ("pruned", "paired_mean")):
        (tmp_path / name).mkdir()
        storage = storage_in(tmp_path / name)
        scorer = ManyScorer(8, noise=0.2)
        spec = spec_of(
            selectors=["greedy", {"name": "random", "n_trials": 20}],
            documents={"search": 200, "confirmation": 20},
            pruner=pruner,
        )
        run_study(storage, spec, scorer)
        greedy, random = studies_of(storage)
        best.append([row.mask for row in compare([greedy, random])])
        n_docs = 0
        for study in (greedy, random):
            for trial in study.trials:
                facts = trial_facts(trial)
                assert facts is not None
                if facts.given_up is not None:
                    assert trial.state == TrialState.PRUNED
                    assert trial.value == facts.value
                n_docs += 0 if facts.reused else facts.given_up or 200
        documents.append(n_docs)
        assert len(random.trials) == 20
        chosen = best_trial(greedy)
        assert chosen is not None
        assert chosen.facts.given_up is None
        storage.close()
    assert best[0] == best[1]
    assert documents[1] < 0.8 * documents[0]


def test_a_spec_stored_before_a_key_was_known_is_no_other_spec(storage: Storage) -> None:
    spec, shape = spec_of(), FakeScorer(6).shape
    names = create_studies(storage.optuna, spec, shape)
    for study in studies_of(storage):
        stored = study.user_attrs["mqasearch:study"]
        del stored["spec"]["pruner"]
        study.set_user_attr("mqasearch:study", stored)
    assert create_studies(storage.optuna, spec, shape) == names
