"""What makes two models the same: their weights as stored, and how their attention computes.

Scores are shared between workers by this fingerprint, so it must not depend on the device or the
dtype that a worker loads the model in, nor on how a checkpoint is cut into files.
"""

import hashlib
import json
import logging
import os
import struct
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from mqasearch.assets import cache_dir
from mqasearch.errors import ModelError

logger = logging.getLogger(__name__)

_CHUNK = 1 << 22

_CONFIG_KEYS = frozenset(
    {
        "activation_function",
        "attention_bias",
        "attn_logit_softcapping",
        "do_layer_norm_before",
        "final_logit_softcapping",
        "head_dim",
        "hidden_act",
        "hidden_activation",
        "hidden_size",
        "layer_norm_eps",
        "layer_norm_epsilon",
        "layer_types",
        "model_type",
        "num_attention_heads",
        "num_hidden_layers",
        "num_key_value_heads",
        "query_pre_attn_scalar",
        "rms_norm_eps",
        "rope_parameters",
        "scale_attn_by_inverse_layer_idx",
        "scale_attn_weights",
        "sliding_window",
        "tie_word_embeddings",
        "use_parallel_residual",
    }
)
"""What of a config changes the logits. The rest is bookkeeping: paths, versions, generation."""


def fingerprint_of(folder: Path, config: PreTrainedConfig) -> str:
    """SHA-256 (hex) of a checkpoint's tensors and of the part of its config that computes.

    Reading the tensors takes about a second per gigabyte; the result is remembered by path, time
    and size of the files.

    Args:
        folder: with safetensors files.
        config: of the model, as transformers understands it.

    Raises:
        ModelError: no safetensors files, or broken ones.
    """
    files = weight_files(folder)
    weights = remembered(files, lambda: _weights_digest(files))
    computing = {key: value for key, value in config.to_dict().items() if key in _CONFIG_KEYS}
    canonical = json.dumps(computing, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(f"{weights}\n{canonical}".encode()).hexdigest()


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
    """``compute()``, or what it returned the last time that ``files`` were as they are now."""
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
        handle, name = tempfile.mkstemp(dir=memory.parent)
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(digest)
        Path(name).replace(memory)
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
    """Where a tensor lies in a safetensors file, and how it is stored."""

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
    """Of all tensors, by name; hashing lets go of the interpreter lock, so threads help."""
    tensors = sorted(
        (tensor for file in files for tensor in _tensors(file)), key=lambda tensor: tensor.name
    )
    whole = hashlib.sha256()
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as threads:
        for line in threads.map(_Tensor.line, tensors):
            whole.update(line.encode())
    return whole.hexdigest()


def _tensors(file: Path) -> Iterator[_Tensor]:
    """The header of a safetensors file: its length in 8 bytes, little-endian, and JSON."""
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
