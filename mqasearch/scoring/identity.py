"""All that a score depends on, in one place: weights, tokenizer, merge, task, documents and code.

What a machine adds is left out on purpose: its processor, the build of torch, the number of rows
that it runs at once. They round differently, by less than a document's noise, and workers of
different machines share their scores.
"""

import hashlib
import json
import tempfile
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from mqasearch.mask import KVHeads
from mqasearch.score import Documents, ScoreKey, TaskSpec
from mqasearch.source_code import code_digest

PACKAGES = ("lm_eval", "transformers", "tokenizers", "torch")
"""Other people's code that a score depends on."""

COMPUTING = (
    "conversion",
    "families",
    "forward",
    "models",
    "scoring",
    "tasks",
    "mask.py",
)
"""Our own: what loads a model, merges its layers, puts documents to it and reads its answers."""

HEALING_CODE = ("healing", "heal_recipe.py", "scoring/healers.py")
"""What a healed score depends on besides; no other score does."""

_LM_EVAL = version("lm_eval")


@cache
def scoring_code() -> str:
    """SHA-256 (hex) of the code that computes scores, as it was when this process asked first."""
    return code_digest(COMPUTING, PACKAGES, HEALING_CODE)


@dataclass(frozen=True, slots=True)
class Identity:
    """What all scores of one scorer have in common; the names are those of ``ScoreKey``."""

    model: str
    tokenizer: str
    dtype: str
    merge: str
    calibration: str

    def key(
        self,
        kv_heads: KVHeads,
        task: TaskSpec,
        documents: Documents,
        *,
        task_version: str,
        digest: str,
    ) -> ScoreKey:
        """The key of one score.

        Args:
            kv_heads: per layer, layer 0 first.
            task: with its examples in the prompt.
            documents: whose seed orders documents and draws examples.
            task_version: lm-eval's.
            digest: of the chosen documents, in order.
        """
        return ScoreKey(
            model=self.model,
            tokenizer=self.tokenizer,
            dtype=self.dtype,
            merge=self.merge,
            calibration=self.calibration,
            kv_heads=kv_heads,
            task=task.name,
            task_version=task_version,
            num_fewshot=task.num_fewshot,
            documents=digest,
            seed=documents.seed,
            lm_eval=_LM_EVAL,
            code=scoring_code(),
        )


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 (hex) of what a tokenizer does to a text, wherever it was loaded from.

    Padding and truncation are left out: they are set anew at every call. So is the pad token, which
    lm-eval adds where there is none, and the chat template, which is not used.
    """
    # lm-eval starts a text with the first of these and ends a generated one at the second.
    special = [tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token]
    tidies = getattr(tokenizer, "clean_up_tokenization_spaces", None)
    parts = {"special": special, "tidies": tidies, "rules": _rules(tokenizer)}
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _rules(tokenizer: PreTrainedTokenizerBase) -> Any:
    """Vocabulary, merges, normaliser and the rest, as plain data."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        written: dict[str, Any] = json.loads(backend.to_str())
        return {key: written[key] for key in written if key not in ("padding", "truncation")}
    kind = type(tokenizer)
    return {
        "class": f"{kind.__module__}.{kind.__qualname__}",
        "adds": [getattr(tokenizer, name, None) for name in ("add_bos_token", "add_eos_token")],
        "vocabulary": tokenizer.get_vocab(),
        "files": _vocabulary_files(tokenizer),
    }


def _vocabulary_files(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Digests of the files that a tokenizer in Python writes: merges, or a SentencePiece model."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            written = tokenizer.save_vocabulary(folder)
        except NotImplementedError:
            return []
        return [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in written]
