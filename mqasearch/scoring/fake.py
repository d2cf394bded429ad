"""A scorer without a model, for trying selectors, and for testing all code that uses a scorer.

The loss of a mask, in bits per byte above the original's, is

    Σ_l a_l  +  Σ_{l<m} b_lm        over converted layers l, m

``a`` is positive and skewed (a few layers matter much, most of them little), as measured on real
models. ``b`` is a fifth of its size and has either sign, so that losses are neither additive nor
submodular. Every document has its own difficulty, and its own reaction to each converted layer. So
the per-document values of two masks are paired and noisy, and similar if the masks are similar.
``kl`` is the same loss with half the noise. All of it is drawn from the seed, so that two processes
agree.
"""

import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from mqasearch.errors import MaskError, ScoreError
from mqasearch.mask import KVHeads, ModelShape
from mqasearch.score import Documents, NoScore, Score, ScoreKey, TaskSpec
from mqasearch.scoring.identity import Identity
from mqasearch.scoring.scorer import score_each

_TINY = 1e-12
_SPLIT_SIZES = {
    "search": 400,
    "confirmation": 400,
    "calibration": 200,
    "full": 1000,
    "uncalibrated": 800,
}


class FakeScorer:
    """Additive and pairwise layer sensitivities with noise per document.

    It has all that :class:`mqasearch.scoring.Scorer` asks for, without a model.

    Example:
        >>> scorer = FakeScorer(n_layers=3)
        >>> score = scorer.score((4, 1, 4), TaskSpec("hellaswag"), Documents("search", limit=20))
        >>> score.n_docs, sorted(score.values)[:2]
        (20, ['acc', 'acc_norm'])
    """

    def __init__(
        self,
        n_layers: int = 12,
        *,
        n_kv_heads: int = 4,
        seed: int = 0,
        noise: float = 0.5,
        seconds: float = 0.0,
        diverging: tuple[int, ...] = (),
        is_healed: bool = False,
    ) -> None:
        """
        Args:
            n_layers: number of attention layers.
            n_kv_heads: number of KV heads of the original.
            seed: the seed of the sensitivities and of the noise.
            noise: standard deviation of a document's own reaction to a layer, as a share of the
                layer's loss.
            seconds: seconds to sleep at every score.
            diverging: layers whose conversion gives NaN.
            is_healed: whether every loss is half of what it would be otherwise.
        """
        self._arguments = (n_layers, n_kv_heads, seed, noise, seconds, diverging)
        self.shape = ModelShape(n_layers, 2 * n_kv_heads, n_kv_heads, 16, 32 * n_kv_heads, 2)
        self.model = f"fake:{n_layers}:{n_kv_heads}:{seed}:{noise}:{diverging}"
        self.tokenizer = ""
        self.seed = seed
        self.noise = noise
        self.seconds = seconds
        self.diverging = diverging
        self.n_scored = 0
        rng = np.random.default_rng([seed, n_layers])
        self._single = rng.lognormal(mean=-3.0, sigma=1.0, size=n_layers)
        pairs = rng.normal(scale=0.2, size=(n_layers, n_layers))
        if is_healed:
            self._single /= 2
        scale = np.sqrt(np.outer(self._single, self._single))
        self._pairs = np.triu(pairs * scale, k=1)

    def healed(self) -> "FakeScorer":
        """A scorer of the same model after healing, for any mask."""
        n_layers, n_kv_heads, seed, noise, seconds, diverging = self._arguments
        return FakeScorer(
            n_layers,
            n_kv_heads=n_kv_heads,
            seed=seed,
            noise=noise,
            seconds=seconds,
            diverging=diverging,
            is_healed=True,
        )

    def loss(self, kv_heads: KVHeads) -> float:
        """True expected loss above the original's, in bits per byte, without noise.

        Raises:
            MaskError: ``kv_heads`` has another number of layers.
        """
        if len(kv_heads) != self.shape.n_layers:
            raise MaskError(
                f"{len(kv_heads)} layers are given, the model has {self.shape.n_layers}"
            )
        share = self._share(kv_heads)
        return float(self._single @ share + share @ self._pairs @ share)

    def key(self, kv_heads: KVHeads, task: TaskSpec, documents: Documents) -> ScoreKey:
        """The key under which the result of ``score`` may be shared."""
        identity = Identity(self.model, self.tokenizer, "float32", "fake", "")
        digest = f"{documents.split}:{self._n_docs(documents)}"
        return identity.key(kv_heads, task, documents, task_version="0", digest=digest)

    def score(self, kv_heads: KVHeads, task: TaskSpec, documents: Documents) -> Score:
        """The metrics of a multiple-choice task.

        Raises:
            MaskError: ``kv_heads`` has another number of layers.
            ScoreError: a diverging layer is converted.
        """
        started = time.perf_counter()
        if self.seconds:
            time.sleep(self.seconds)
        self.n_scored += 1
        loss = self.loss(kv_heads)
        share = self._share(kv_heads)
        if share[list(self.diverging)].any():
            raise ScoreError(f"{task.name}: bits_per_byte is nan")
        n = self._n_docs(documents)
        rows = [self._document(task, documents, i, share, loss) for i in range(n)]
        bits, ease, before, kl, answer_kl = (np.array(column) for column in zip(*rows, strict=True))
        margin, original = 1.0 - bits + ease, 1.0 - before + ease
        columns = {
            "acc": (margin > 0).astype(float),
            "acc_norm": (margin > -0.1).astype(float),
            "bits_per_byte": bits,
            "choice_cross_entropy": np.log1p(np.exp(-2.0 * margin)),
            "kl": kl,
            "answer_kl": answer_kl,
            "flips": ((margin > -0.1) != (original > -0.1)).astype(float),
        }
        return Score(
            values={metric: float(column.mean()) for metric, column in columns.items()},
            stderr={
                metric: float(column.std(ddof=1)) / math.sqrt(n) if n > 1 else 0.0
                for metric, column in columns.items()
            },
            n_docs=n,
            seconds=time.perf_counter() - started,
            documents={m: tuple(float(v) for v in column) for m, column in columns.items()},
        )

    def score_many(
        self, masks: Sequence[KVHeads], task: TaskSpec, documents: Documents
    ) -> list[Score | NoScore]:
        """Score the masks one after the other.

        Raises:
            MaskError: a mask has another number of layers.
        """
        return score_each(self, masks, task, documents)

    def gains_from_many(self) -> bool:
        """False: nothing is shared between masks."""
        return False

    def saved_layer_tokens(self, kv_heads: KVHeads) -> int:
        """0: no states are kept."""
        return 0

    def score_in_parts(
        self,
        kv_heads: KVHeads,
        task: TaskSpec,
        documents: Documents,
        part: int,
        known: Score | None = None,
    ) -> Iterator[Score]:
        """The scores at growing limits, up to the limit of ``documents``.

        Raises:
            MaskError, ScoreError: as in ``score``.
        """
        seconds = 0.0
        if known is not None:
            seconds = known.seconds
            yield known
        n_docs = self._n_docs(documents)
        for done in range(known.n_docs if known else 0, n_docs, part):
            limit = min(n_docs, done + part)
            score = self.score(kv_heads, task, Documents(documents.split, limit, documents.seed))
            seconds += score.seconds
            yield replace(score, seconds=seconds)

    def _share(self, kv_heads: KVHeads) -> np.ndarray:
        """Per layer: 0 if unconverted, 1 with a single KV head, linear between them."""
        most = self.shape.n_kv_heads
        return np.array([(most - heads) / (most - 1) for heads in kv_heads])

    def _n_docs(self, documents: Documents) -> int:
        size = _SPLIT_SIZES[documents.split]
        return size if documents.limit is None else min(size, documents.limit)

    def _document(
        self, task: TaskSpec, documents: Documents, index: int, share: np.ndarray, loss: float
    ) -> tuple[float, float, float, float, float]:
        """A document's bits per byte, ease, original bits per byte, kl and answer_kl.

        The ease is how far its right answer is ahead in the original, apart from bits per byte.
        """
        name = f"{self.seed}:{task.name}:{documents.split}:{documents.seed}:{index}"
        digest = hashlib.sha256(name.encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
        difficulty, ease = rng.normal(1.0, 0.4), rng.normal(0.3, 0.5)
        reactions = rng.normal(scale=self.noise, size=share.size)
        own = float((reactions * self._single) @ share)
        sigma = self.noise / 2
        spread = rng.lognormal(-(sigma**2) / 2, sigma, size=share.size + 1)
        alone = self._single * share
        kl = max(loss, 0.0) * float(alone @ spread[:-1]) / max(float(alone.sum()), _TINY)
        return difficulty + loss + own, ease, difficulty, kl, 0.7 * kl * float(spread[-1])
