"""All that a score depends on: weights, tokenizer, merge, task, documents and code.

What depends on the machine is left out on purpose: its processor, the build of torch, and the
number of rows that it runs at once. These change the rounding by less than a document's noise, and
workers on different machines share their scores.
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
"""Packages of others that a score depends on."""

COMPUTING = (
    "conversion",
    "families",
    "forward",
    "merging",
    "models",
    "scoring",
    "tasks",
    "mask.py",
)
"""Our own code that a score depends on: it loads a model, merges its layers, runs it on documents
and reads its answers."""

HEALING_CODE = ("healing", "heal_recipe.py", "scoring/healers.py")
"""Our code that only the score of a healed mask depends on."""

_LM_EVAL = version("lm_eval")


@cache
def scoring_code() -> str:
    """SHA-256 (hex) of the code that computes scores, as it was at this process's first call."""
    return code_digest(COMPUTING, PACKAGES, HEALING_CODE)


@dataclass(frozen=True, slots=True)
class Identity:
    """What all scores of one scorer have in common; fields are named as in ``ScoreKey``."""

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
            kv_heads: KV heads per layer, layer 0 first.
            task: the task, with its number of examples in the prompt.
            documents: which documents; their seed orders documents and draws examples.
            task_version: lm-eval's version of the task.
            digest: digest of the chosen documents, in order.
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
    """SHA-256 (hex) of what a tokenizer does to a text; it does not depend on its source.

    Padding and truncation are left out, because they are set at every call. The pad token is left
    out, because lm-eval adds one if there is none; the chat template, because it is not used.
    """
    # lm-eval begins a text with the first of these, and a generated text ends at the second.
    special = [tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token]
    tidies = getattr(tokenizer, "clean_up_tokenization_spaces", None)
    parts = {"special": special, "tidies": tidies, "rules": _rules(tokenizer)}
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _rules(tokenizer: PreTrainedTokenizerBase) -> Any:
    """Vocabulary, merges, normaliser and the other parts, as plain data."""
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
