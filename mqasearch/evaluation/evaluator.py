"""Scores of masks: taken from the database if they are there, else computed by the scorer."""

import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from mqasearch.errors import ScoreError, UserError
from mqasearch.evaluation.ahead import Ahead
from mqasearch.evaluation.prefixes import KnownPrefixes
from mqasearch.evaluation.racing import StopRule, paired_estimate, race
from mqasearch.evaluation.uncertainty import difference_stderr, given_up_stderr, objective
from mqasearch.mask import KVHeads, LayerMask
from mqasearch.score import Documents, Score, ScoreKey, Split, TaskSpec
from mqasearch.scores import Claims
from mqasearch.scoring import HEALING, Healer, Scorer, healed_key
from mqasearch.statistics import Estimate


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Scores of one mask.

    Attributes:
        value: the objective; for a mask that was given up, its expectation on all documents.
        scores: task name → score.
        seconds: seconds spent on scores that were not in the database.
        reused: whether every score was in the database.
        stderr: standard error of ``value``; None if it is unknown.
        lost_to: if the mask was given up in a race, the incumbent's score on all documents; None if
            all documents were scored.
    """

    value: float
    scores: Mapping[str, Score]
    seconds: float
    reused: bool
    stderr: float | None = None
    lost_to: Score | None = None

    @property
    def given_up(self) -> int | None:
        """Number of documents after which the mask lost a race; None if all were scored."""
        return None if self.lost_to is None else sum(s.n_docs for s in self.scores.values())


class _GivenUp(Exception):
    """Raised if a race ended before its last document."""

    def __init__(self, score: Score) -> None:
        self.score = score


class Evaluator:
    """Scores masks and keeps the scores; no mask is scored twice, even by several workers.

    Example:
        >>> from sqlalchemy import create_engine
        >>> from mqasearch.database import schema
        >>> from mqasearch.scores import ScoreStore
        >>> from mqasearch.scoring import FakeScorer
        >>> engine = create_engine("sqlite://")
        >>> schema.upgrade(engine)
        >>> claims = Claims(engine, ScoreStore(engine))
        >>> evaluator = Evaluator(FakeScorer(3), claims, [TaskSpec("hellaswag", limit=9)])
        >>> mask = LayerMask.parse("010")
        >>> [evaluator.evaluate(mask).reused for attempt in range(2)]
        [False, True]
    """

    def __init__(
        self,
        scorer: Scorer,
        claims: Claims,
        tasks: Sequence[TaskSpec],
        *,
        numbers: Sequence[int] = (1,),
        search_split: Split = "search",
        seed: int = 0,
        maximize: bool = False,
        rule: StopRule | None = None,
    ) -> None:
        """
        Args:
            scorer: computes scores that are not in the database.
            claims: claims the scores that this worker computes.
            tasks: the tasks of the objective.
            numbers: the numbers of KV heads that a converted layer may have.
            search_split: the split of the documents that the search scores.
            seed: the seed of the documents' order.
            maximize: whether a larger objective is better.
            rule: when ``race`` gives up a mask.
        """
        self.scorer = scorer
        self.claims = claims
        self.tasks = tuple(tasks)
        self.numbers = tuple(numbers)
        self.search_split = search_split
        self.seed = seed
        self.maximize = maximize
        self.rule = rule
        self.fault_of_original: str | None = None
        """Why the original cannot be scored; None if it can, or no worker has tried."""
        self._original: Evaluation | None = None
        self._earlier = 0.0
        """The part of the last computed score's seconds that was spent earlier, on its known first
        documents."""
        self._prefixes = KnownPrefixes(scorer, claims.store, rule)
        self._ahead = Ahead(scorer, claims)

    def evaluate(self, mask: LayerMask, certain: Sequence[LayerMask] = ()) -> Evaluation:
        """Score a mask on the search documents of every task.

        Args:
            mask: the mask to be scored.
            certain: masks that will be asked for later; some of them may be scored together with
                ``mask`` if that is cheaper.

        Raises:
            ScoreError: a score is NaN or infinite. Also, without computing anything, if the
                original cannot be scored, as there is nothing to compare a mask with.
        """
        if self.fault_of_original is not None:
            raise ScoreError(self.fault_of_original)
        documents = {task.name: self.search_documents(task) for task in self.tasks}
        try:
            return self._evaluate(mask, documents, certain)
        except ScoreError as error:
            if not mask.n_converted:
                self.fault_of_original = str(error)
            raise

    def race(self, mask: LayerMask, incumbent: LayerMask) -> Evaluation:
        """Score a mask on the search documents until it is clearly worse than ``incumbent``.

        Raises:
            ScoreError: a score is NaN or infinite.
        """
        (task,) = self.tasks
        documents = self.search_documents(task)
        key = self._key(mask, task, documents)
        against = self.claims.store.get(self._key(incumbent, task, documents))
        if against is None or task.metric not in against.documents:
            return self.evaluate(mask)
        compute = partial(self._race, self._kv_heads(mask), task, documents, against)
        try:
            score, is_new = self.claims.get_or_score(key, compute)
        except _GivenUp as given_up:
            return self._given_up(mask, task, given_up.score, against)
        seconds = score.seconds - self._earlier if is_new else 0.0
        return self._evaluation({task.name: score}, seconds, not is_new)

    def confirm(self, mask: LayerMask, limit: int | None) -> Evaluation:
        """Score a mask on ``limit`` documents of every task that the search never sees."""
        documents = Documents("confirmation", limit, self.seed)
        return self._evaluate(mask, {task.name: documents for task in self.tasks})

    def confirm_healed(
        self, mask: LayerMask, limit: int | None, healer: Healer
    ) -> tuple[Mapping[str, Score], Mapping[str, float]]:
        """Heal a mask, and score the healed model on the documents of ``confirm``.

        One worker heals the mask and scores it on every task; others that ask meanwhile wait.

        Returns:
            Task name → score, and how the healing went, as numbers (see ``Healer.healed``).

        Raises:
            ScoreError: a score, or the loss that the healing began with, is NaN or infinite.
        """
        kv_heads = self._kv_heads(mask)
        documents = Documents("confirmation", limit, self.seed)
        keys, whole = self._healed_keys(mask, limit, healer)
        store = self.claims.store

        def compute() -> Score:
            began = time.monotonic()
            scorer, numbers = healer.healed(kv_heads)
            scores = {
                keys[task.name]: _checked(mask, task, scorer.score(kv_heads, task, documents))
                for task in self.tasks
            }
            for key, score in scores.items():  # stored only now: all must be of one healing
                store.put(key, score)
            return Score(numbers, {}, 1, time.monotonic() - began, {})

        told, _ = self.claims.get_or_score(whole, compute)
        found = store.get_many(keys.values())
        return {task: found[key] for task, key in keys.items()}, told.values

    def is_healing(self, mask: LayerMask, limit: int | None, healer: Healer) -> bool:
        """Whether another worker is running ``confirm_healed`` of this mask."""
        _, whole = self._healed_keys(mask, limit, healer)
        return whole.digest() in self.claims.of_others()

    def _healed_keys(
        self, mask: LayerMask, limit: int | None, healer: Healer
    ) -> tuple[dict[str, ScoreKey], ScoreKey]:
        """Task name → key of its score, and the key of how the healing went.

        The second key depends on all tasks.
        """
        kv_heads = self._kv_heads(mask)
        documents = Documents("confirmation", limit, self.seed)
        keys = {
            task.name: healed_key(self.scorer.key(kv_heads, task, documents), healer.how)
            for task in self.tasks
        }
        digests = " ".join(sorted(key.digest() for key in keys.values()))
        every = hashlib.sha256(digests.encode()).hexdigest()
        return keys, replace(next(iter(keys.values())), task=HEALING, documents=every)

    def cheapest(self, masks: Sequence[LayerMask]) -> LayerMask:
        """The mask that costs this worker least, of those that no other worker is scoring.

        If others are scoring all of them, it is the cheapest of all. If several are equal, it is
        the first one.
        """
        if len(masks) == 1:
            return masks[0]
        taken = self.claims.of_others()
        free = [mask for mask in masks if not self._digests(mask) & taken] if taken else masks
        return max(
            free or masks, key=lambda mask: self.scorer.saved_layer_tokens(self._kv_heads(mask))
        )

    def search_documents(self, task: TaskSpec) -> Documents:
        """The documents that the search scores on a task."""
        return Documents(self.search_split, task.limit, self.seed)

    def original(self) -> Evaluation:
        """The evaluation of the unconverted model, which is scored at most once, even if it fails.

        Raises:
            ScoreError: the original cannot be scored.
        """
        if self._original is None:
            self._original = self.evaluate(LayerMask.empty(self.scorer.shape.n_layers))
        return self._original

    def against_original(self, evaluation: Evaluation) -> Estimate:
        """The objective − the original's objective, with the paired difference's standard error.

        Args:
            evaluation: the evaluation of a mask on the search documents.
        """
        original = self.original()
        if evaluation.lost_to is None:
            error = difference_stderr(self.tasks, evaluation.scores, original.scores)
        else:
            (task,) = self.tasks
            score, of_original = evaluation.scores[task.name], original.scores[task.name]
            error = given_up_stderr(score, evaluation.lost_to, task.metric, of_original)
        return Estimate(evaluation.value - original.value, error)

    def _evaluation(self, scores: Mapping[str, Score], seconds: float, reused: bool) -> Evaluation:
        """An evaluation whose value is the weighted mean of each task's metric.

        Raises:
            ScoreError: the mean is NaN or infinite.
        """
        mean = objective(self.tasks, scores)
        if not math.isfinite(mean.value):
            names = ", ".join(f"{task.metric} of {task.name}" for task in self.tasks)
            raise ScoreError(f"the objective ({names}) is {mean.value}")
        return Evaluation(mean.value, scores, seconds, reused, mean.stderr)

    def _evaluate(
        self,
        mask: LayerMask,
        documents: Mapping[str, Documents],
        certain: Sequence[LayerMask] = (),
    ) -> Evaluation:
        kv_heads = self._kv_heads(mask)
        others = [self._kv_heads(other) for other in certain]
        scores: dict[str, Score] = {}
        seconds, reused = 0.0, True
        for task in self.tasks:
            key = self.scorer.key(kv_heads, task, documents[task.name])
            compute = partial(self._compute, kv_heads, task, documents[task.name], others)
            score, is_new = self.claims.get_or_score(key, compute)
            if is_new:
                seconds, reused = seconds + score.seconds - self._earlier, False
            elif self._ahead.was_mine(key):
                seconds, reused = seconds + score.seconds, False
            scores[task.name] = _checked(mask, task, score)
        return self._evaluation(scores, seconds, reused)

    def _compute(
        self, kv_heads: KVHeads, task: TaskSpec, documents: Documents, others: Sequence[KVHeads]
    ) -> Score:
        known = self._longest_prefix(kv_heads, task, documents)
        if known is not None:
            *_, score = self.scorer.score_in_parts(
                kv_heads, task, documents, documents.limit or 2**31, known
            )
            return score
        new = self._prefixes.without(others, task, documents)
        return self._ahead.score(kv_heads, task, documents, new)

    def _race(
        self, kv_heads: KVHeads, task: TaskSpec, documents: Documents, against: Score
    ) -> Score:
        assert self.rule is not None
        score = race(
            self.scorer,
            kv_heads,
            task,
            documents,
            incumbent=against,
            higher_is_better=self.maximize,
            rule=self.rule,
            known=self._longest_prefix(kv_heads, task, documents),
        )
        if score.n_docs < against.n_docs:
            raise _GivenUp(score)
        return score

    def _given_up(
        self, mask: LayerMask, task: TaskSpec, score: Score, against: Score
    ) -> Evaluation:
        """Store the score of a mask that lost a race, under the key of its number of documents."""
        shorter = Documents(self.search_split, score.n_docs, self.seed)
        key = self._key(mask, task, shorter)
        known = self.claims.store.get(key)
        if known is None:
            self.claims.store.put(key, score)
        value = paired_estimate(score, against, task.metric)
        error = given_up_stderr(score, against, task.metric)
        seconds = score.seconds - self._earlier if known is None else 0.0
        return Evaluation(
            value, {task.name: score}, seconds, known is not None, stderr=error, lost_to=against
        )

    def _longest_prefix(
        self, kv_heads: KVHeads, task: TaskSpec, documents: Documents
    ) -> Score | None:
        known = self._prefixes.longest(kv_heads, task, documents)
        self._earlier = 0.0 if known is None else known.seconds
        return known

    def _key(self, mask: LayerMask, task: TaskSpec, documents: Documents) -> ScoreKey:
        return self.scorer.key(self._kv_heads(mask), task, documents)

    def _digests(self, mask: LayerMask) -> set[str]:
        return {self._key(mask, t, self.search_documents(t)).digest() for t in self.tasks}

    def _kv_heads(self, mask: LayerMask) -> KVHeads:
        return mask.kv_heads(self.scorer.shape, self.numbers)


def _checked(mask: LayerMask, task: TaskSpec, score: Score) -> Score:
    if task.metric not in score.values:
        raise UserError(
            f"task {task.name}: not every document that was scored has {task.metric}; "
            f"all have {', '.join(score.values)}: create another study with one of them"
        )
    for metric, value in score.values.items():
        if not math.isfinite(value):
            raise ScoreError(f"{task.name}: {metric} of mask {mask} is {value}")
    return score
