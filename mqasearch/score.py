"""The score of one model on one task, and the key under which it is shared.

A score belongs to a model with some KV heads, not to a study: studies, selectors and workers that
need the same key share one row.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

from mqasearch.mask import KVHeads

Split = Literal["search", "confirmation", "calibration", "full", "uncalibrated"]

DEFAULT_METRIC = "kl"
"""The metric that a search optimises: on few documents it ranks masks best
(benchmarks/fidelity.md)."""

HIGHER_IS_BETTER: Mapping[str, bool] = {
    "acc": True,
    "acc_norm": True,
    "bits_per_byte": False,
    "choice_cross_entropy": False,
    "kl": False,
    "answer_kl": False,
    "flips": False,
}
"""Direction of the metrics that we compute, if a task has them; lm-eval's own metrics carry their
direction in the task."""


ZERO_ONE = frozenset({"acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match", "flips"})
"""Metrics that are 0 or 1 for a document, as far as we know them by name."""


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """One benchmark of a study.

    Attributes:
        name: lm-eval's name of the task.
        metric: the metric that the search optimises on it.
        num_fewshot: examples in the prompt.
        limit: documents of the search split to score; None = all of them.
        weight: weight in the objective.
    """

    name: str
    metric: str = DEFAULT_METRIC
    num_fewshot: int = 0
    limit: int | None = None
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Documents:
    """Which documents of a task are scored.

    The split is decided by a hash of the document alone, the order within it by ``seed``, so that
    a smaller ``limit`` is always a prefix of a larger one.

    Attributes:
        split: search, confirmation or calibration, which are disjoint; full, all documents; or
            uncalibrated, all but those of calibration.
        limit: number of documents; None = the whole split.
        seed: seed of the order.
    """

    split: Split
    limit: int | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class ScoreKey:
    """All that a score depends on. Study, sampler and worker are left out on purpose.

    Attributes:
        model: fingerprint of the original weights.
        tokenizer: digest of what the tokenizer does to a text.
        dtype: torch's name without the prefix, ``float32``.
        merge: name and parameters of the merge, canonical.
        calibration: digest of the calibration statistics; empty if the merge needs none.
        kv_heads: KV heads per layer, layer 0 first.
        task: lm-eval's name.
        task_version: lm-eval's version of the task.
        num_fewshot: examples in the prompt.
        documents: digest of the scored documents, in order.
        seed: seed of the few-shot examples.
        lm_eval: version of the package.
        code: digest of our own code and of the versions of the packages that compute.
    """

    model: str
    tokenizer: str
    dtype: str
    merge: str
    calibration: str
    kv_heads: KVHeads
    task: str
    task_version: str
    num_fewshot: int
    documents: str
    seed: int
    lm_eval: str
    code: str

    def digest(self) -> str:
        """SHA-256 (hex) of the canonical JSON of all fields."""
        canonical = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Score:
    """The score of one model on one task's documents.

    Attributes:
        values: metric → mean over the documents.
        stderr: metric → standard error of that mean.
        n_docs: number of documents.
        seconds: seconds that scoring took.
        documents: metric → one value per document, in the order of the key's documents, for paired
            tests.
    """

    values: Mapping[str, float]
    stderr: Mapping[str, float]
    n_docs: int
    seconds: float
    documents: Mapping[str, tuple[float, ...]] = field(repr=False)


@dataclass(frozen=True, slots=True)
class NoScore:
    """Stands for the score of one of several masks, if the mask cannot be scored.

    Attributes:
        fault: why; one line.
    """

    fault: str
