"""A model's fingerprint: two models are the same if their stored weights and their configs are.

Workers share scores by this fingerprint. So it must not depend on the device or the dtype in which
a worker loads the model, nor on how a checkpoint is split into files.
"""

import hashlib
import json
import logging
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedConfig

from mqasearch.assets import cache_dir
from mqasearch.errors import ModelError
from mqasearch.files import write_whole

logger = logging.getLogger(__name__)

_CHUNK = 1 << 22

_METHOD = 2
"""Raised by 1 if equal models get another fingerprint than before; the first version had none."""

_IRRELEVANT = frozenset(
    {
        # Where and by which version the file was written; a score's key has the reader's version.
        "_commit_hash",
        "_name_or_path",
        "auto_map",  # holds the hub id; code that came with a model is hashed separately
        "transformers_version",
        # The key of a score names the dtype that a worker computes in.
        "dtype",
        "torch_dtype",
        # The class that wrote the file; what is loaded follows from model_type.
        "architectures",
        # What a call returns besides logits, and whether it keeps a cache or works in pieces.
        "chunk_size_feed_forward",
        "output_attentions",
        "output_hidden_states",
        "return_dict",
        "use_cache",
        # Training only: scoring uses no dropout, and weights are loaded, not drawn at random.
        "attention_dropout",
        "attn_pdrop",
        "classifier_dropout",
        "dropout",
        "embd_pdrop",
        "hidden_dropout",
        "initializer_range",
        "init_std",
        "layerdrop",
        "resid_pdrop",
        "summary_first_dropout",
        # Heads of classifiers, which a language model does not have.
        "id2label",
        "label2id",
        "problem_type",
        "summary_activation",
        "summary_proj_to_labels",
        "summary_type",
        "summary_use_proj",
        # The tokenizer decides on tokens and has a digest of its own; the end of a generated text
        # is set in the generation config, which is hashed too.
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "sep_token_id",
        "tokenizer_class",
        "unk_token_id",
    }
)
"""Keys of a config that cannot change a score. All other keys, also unknown ones, may change it."""

_IRRELEVANT_GENERATION = frozenset(
    {
        "_from_model_config",
        "bos_token_id",  # starts a text without a prompt; benchmarks have prompts
        "pad_token_id",  # lm-eval gives the tokenizer's
        "transformers_version",
        "output_attentions",
        "output_hidden_states",
        "return_dict_in_generate",
        "use_cache",
    }
)


def fingerprint_of(
    folder: Path,
    config: PreTrainedConfig,
    generation: GenerationConfig | None = None,
    code: str = "",
) -> str:
    """A digest of a checkpoint's tensors and of all values in its configs that may change a score.

    Reading the tensors takes about a second per gigabyte; the result is remembered by path, time
    and size of the files.

    Args:
        folder: the folder with the safetensors files.
        config: the model's config, as transformers reads it.
        generation: how the model continues a text; None = transformers' defaults.
        code: code that came with the model and runs; empty = transformers' own code runs.

    Returns:
        The version of this method, a colon, and a SHA-256 (hex). Only fingerprints of the same
        version can be compared.

    Raises:
        ModelError: there are no safetensors files, or they are broken.
    """
    files = weight_files(folder)
    weights = remembered(files, lambda: _weights_digest(files))
    parts: dict[str, Any] = {"config": _computing(config.to_dict(), _defaults(config))}
    if generation is not None:
        written = generation.to_diff_dict().items()
        parts["generation"] = {k: v for k, v in written if k not in _IRRELEVANT_GENERATION}
    if code:
        parts["code"] = hashlib.sha256(code.encode()).hexdigest()
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return f"{_METHOD}:" + hashlib.sha256(f"{weights}\n{canonical}".encode()).hexdigest()


def _computing(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a config, and of nested ones such as ``text_config``, that may change a score.

    A value that is transformers' default counts as not given: the next version may have more keys,
    and the same files must give the same fingerprint.
    """
    kept = {}
    for key, value in config.items():
        is_default = key in defaults and defaults[key] == value and key != "model_type"
        if key in _IRRELEVANT or is_default:
            continue
        if isinstance(value, Mapping):
            value = _computing(value, {})
        kept[key] = value
    return kept


def _defaults(config: PreTrainedConfig) -> dict[str, Any]:
    try:
        return type(config)().to_dict()
    except Exception:  # the class may have come with the model and need arguments
        return {}


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, in transformers' order of preference.

    Raises:
        ModelError: there are none.
    """
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        return [whole]
    if index.is_file():
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return [folder / shard for shard in sorted(shards)]
    raise ModelError(
        f"no model.safetensors in {folder}: only safetensors are read, never pickled weights; "
        "convert them, or name a revision that has them (on the hub often refs/pr/1)"
    )


def remembered(files: Sequence[Path], compute: Callable[[], str]) -> str:
    """``compute()``, or its earlier result if path, size and time of ``files`` are the same."""
    state = [
        [str(file.resolve()), stat.st_size, stat.st_mtime_ns]
        for file, stat in ((file, file.stat()) for file in files)
    ]
    key = hashlib.sha256(json.dumps(state).encode()).hexdigest()
    memory = cache_dir() / "digests" / key
    if memory.is_file():
        return memory.read_text(encoding="ascii")
    digest = compute()
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        write_whole(memory, digest)
    except OSError as error:
        logger.debug("a digest is not remembered: %s", error)
    return digest


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes, remembered."""

    def compute() -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    return remembered([path], compute)


@dataclass(frozen=True)
class _Tensor:
    """A tensor's place in a safetensors file, and its dtype and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    begin: int
    end: int

    def line(self) -> str:
        """Everything about the tensor in one line."""
        return f"{self.name}:{self.dtype}:{list(self.shape)}:{self._digest()}\n"

    def _digest(self) -> str:
        digest = hashlib.sha256()
        with self.file.open("rb") as file:
            file.seek(self.begin)
            left = self.end - self.begin
            while left and (chunk := file.read(min(_CHUNK, left))):
                digest.update(chunk)
                left -= len(chunk)
        if left:
            raise ModelError(f"{self.file} ends within tensor {self.name}: fetch it again")
        return digest.hexdigest()


def _weights_digest(files: Sequence[Path]) -> str:
    """Digest of all tensors, sorted by name.

    Hashing releases the interpreter lock, so threads make it faster.
    """
    tensors = sorted(
        (tensor for file in files for tensor in _tensors(file)), key=lambda tensor: tensor.name
    )
    whole = hashlib.sha256()
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as threads:
        for line in threads.map(_Tensor.line, tensors):
            whole.update(line.encode())
    return whole.hexdigest()


def _tensors(file: Path) -> Iterator[_Tensor]:
    """The tensors in a safetensors file's header: 8 bytes of length, little-endian, then JSON."""
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            if length > file.stat().st_size:
                raise ValueError("the header is longer than the file")
            header: dict[str, Any] = json.loads(opened.read(length))
        for name, entry in header.items():
            if name != "__metadata__":
                begin, end = (8 + length + offset for offset in entry["data_offsets"])
                yield _Tensor(name, entry["dtype"], tuple(entry["shape"]), file, begin, end)
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise ModelError(f"{file} is not a safetensors file: {error}") from error
