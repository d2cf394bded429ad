"""Races, with documents as fidelity: a mask that is clearly worse is not scored to the end.

A mask is scored on growing prefixes of one fixed order of documents. On these it is compared,
document by document, with a mask that is known to be good. The mean decides in the end, so the test
is one of the mean. benchmarks/racing.py measures on real scores how often a mask that would have
won is given up.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from mqasearch.mask import KVHeads
from mqasearch.score import Documents, Score, TaskSpec
from mqasearch.scoring import Scorer


@dataclass(frozen=True, slots=True)
class StopRule:
    """When a mask is given up.

    The test is Student's t on the paired differences, one-sided. The looks share its level equally
    (Bonferroni), so that it holds for the whole race, however dependent the looks are. A confidence
    sequence, which allows any number of looks, needs more documents for up to about 20 looks. The
    test does not use that the documents are a sample without replacement: close to the last
    document the standard error would be that of a few unseen documents, and with a 0/1 metric one
    of them may decide.

    Attributes:
        part: number of documents between two looks.
        least: number of documents before the first look.
        level: the chance that a race gives up a mask that is as good as the incumbent on all
            documents.
    """

    part: int = 25
    least: int = 50
    level: float = 0.01

    def stops(
        self, values: Sequence[float], incumbent: Sequence[float], higher_is_better: bool
    ) -> bool:
        """Whether a mask with these values on the first documents is worse than the incumbent.

        Args:
            values: the mask's value for each document scored so far.
            incumbent: the incumbent's values for all documents of the race, in the same order.
            higher_is_better: direction of the metric.
        """
        n, total = len(values), len(incumbent)
        if n < max(2, self.least) or n >= total:
            return False
        differences = np.asarray(values) - np.asarray(incumbent[:n])
        loss = float(differences.mean()) * (-1 if higher_is_better else 1)
        looks = math.ceil((total - self.least) / self.part)
        stderr = float(differences.std(ddof=1)) / math.sqrt(n)
        return loss > float(stats.t.isf(self.level / looks, n - 1)) * stderr


def race(
    scorer: Scorer,
    kv_heads: KVHeads,
    task: TaskSpec,
    documents: Documents,
    *,
    incumbent: Score,
    higher_is_better: bool,
    rule: StopRule = StopRule(),
    known: Score | None = None,
) -> Score:
    """Score a mask until it is clearly worse than the incumbent on ``task.metric``.

    Args:
        scorer: scores the mask.
        kv_heads, task, documents: as in ``Scorer.score``.
        incumbent: the score of a good mask on the same documents, with values per document.
        higher_is_better: direction of ``task.metric``.
        rule: when to stop.
        known: the mask's score at a smaller limit, to go on from.

    Returns:
        The score on all documents. If the mask was given up, it is the score on the first
        ``n_docs``, equal to that of ``Scorer.score`` at the limit ``n_docs``.

    Raises:
        MaskError, ScoreError: as in ``Scorer.score``.
    """
    score: Score | None = None
    against = incumbent.documents[task.metric]
    for score in scorer.score_in_parts(kv_heads, task, documents, rule.part, known):
        if rule.stops(score.documents[task.metric], against, higher_is_better):
            break
    if score is None:
        return scorer.score(kv_heads, task, documents)
    return score


def paired_estimate(score: Score, incumbent: Score, metric: str) -> float:
    """The expected score, on all the incumbent's documents, of a mask that was given up.

    It is the incumbent's mean plus the mean difference on the documents of both. So the documents'
    own difficulty cancels; the first few may be harder or easier than all.
    """
    known = np.asarray(incumbent.documents[metric][: score.n_docs])
    difference = np.asarray(score.documents[metric]) - known
    return float(incumbent.values[metric] + difference.mean())
