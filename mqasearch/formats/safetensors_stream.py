"""Write safetensors files one tensor at a time.

The safetensors library serialises a whole file in memory. A file is a header with names, dtypes,
shapes and offsets, followed by the raw bytes (github.com/huggingface/safetensors, "Format"). So if
the shapes are known beforehand, memory needs to hold only the tensor that is being written.
"""

import json
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor that will be written.

    Attributes:
        name: its name in the checkpoint.
        dtype: its elements' dtype.
        shape: its sizes.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        """Bytes of its data."""
        return prod(self.shape) * self.dtype.itemsize


def write_sharded(
    folder: Path, entries: Sequence[Entry], tensors: Iterable[Tensor], max_shard_bytes: int
) -> Iterator[Entry]:
    """Write ``tensors`` into one file, or into several and an index, named as in transformers.

    Args:
        folder: an existing folder.
        entries: name, dtype and shape of each tensor, in order.
        tensors: the tensors, in the same order; only one is held at a time.
        max_shard_bytes: no file is larger, unless a single tensor is.

    Yields:
        Each entry once its bytes are written.

    Raises:
        ValueError: a tensor does not match its entry.
        OSError: a file cannot be written.
    """
    shards = _shards(entries, max_shard_bytes)
    names = _names(len(shards))
    source = iter(tensors)
    for name, shard in zip(names, shards, strict=True):
        with (folder / name).open("wb") as file:
            file.write(_header(shard))
            for entry in shard:
                file.write(_bytes(entry, next(source)))
                yield entry
    if len(shards) > 1:
        weight_map = {
            entry.name: name for name, shard in zip(names, shards, strict=True) for entry in shard
        }
        index = {
            "metadata": {"total_size": sum(entry.n_bytes for entry in entries)},
            "weight_map": weight_map,
        }
        text = json.dumps(index, indent=2) + "\n"
        (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def _shards(entries: Sequence[Entry], max_shard_bytes: int) -> list[list[Entry]]:
    shards: list[list[Entry]] = [[]]
    size = 0
    for entry in entries:
        if shards[-1] and size + entry.n_bytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += entry.n_bytes
    return shards


def _names(count: int) -> list[str]:
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def _header(shard: Sequence[Entry]) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for entry in shard:
        header[entry.name] = {
            "dtype": _DTYPES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [offset, offset + entry.n_bytes],
        }
        offset += entry.n_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data starts at a multiple of 8
    return struct.pack("<Q", len(text)) + text


def _bytes(entry: Entry, tensor: Tensor) -> Any:
    """The tensor's memory as a buffer; it is copied only if it is not contiguous on the CPU."""
    if tensor.dtype != entry.dtype or tuple(tensor.shape) != entry.shape:
        raise ValueError(f"{entry} was announced, {tensor.dtype} {tuple(tensor.shape)} came")
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
