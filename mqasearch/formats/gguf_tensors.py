"""Tensors of a GGUF file: announced all, then written one after the other."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter, LlamaFileType
from gguf.quants import quantize
from torch import Tensor

from mqasearch.errors import ModelError

_F16, _F32 = GGMLQuantizationType.F16, GGMLQuantizationType.F32
OUTTYPES = {
    "f16": (_F16, LlamaFileType.MOSTLY_F16),
    "f32": (_F32, LlamaFileType.ALL_F32),
    "bf16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
"""``--outtype`` → type of the matrices, and of the file.

The first is the default: half the bytes of f32, every backend of llama.cpp computes it, and it
rounds to 11 bits, bf16 to 8.
"""


@dataclass(frozen=True, slots=True)
class Announced:
    """A tensor to come.

    Attributes:
        name: llama.cpp's.
        shape: rows first.
        type: of its elements in the file.
    """

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType

    @property
    def n_bytes(self) -> int:
        """Bytes of its data."""
        block, block_bytes = GGML_QUANT_SIZES[self.type]
        return prod(self.shape) // block * block_bytes


def announce(name: str, shape: tuple[int, ...], outtype: str) -> Announced:
    """A tensor of that outtype, if it can be.

    Norms and biases stay f32. A row that does not divide into the blocks of the outtype makes the
    tensor f16, as in llama.cpp's converter.
    """
    wanted = OUTTYPES[outtype][0] if len(shape) > 1 else _F32
    block, _ = GGML_QUANT_SIZES[wanted]
    return Announced(name, shape, _F16 if shape[-1] % block else wanted)


def write_tensors(
    writer: GGUFWriter, announced: Sequence[Announced], tensors: Iterable[Tensor]
) -> Iterator[int]:
    """Write the file: keys that ``writer`` has, then ``tensors`` one by one.

    Args:
        writer: with a path, and nothing written.
        announced: what each tensor will be, in order.
        tensors: the same, in the same order; drawn one at a time and let go at once.

    Yields:
        The bytes of each tensor when they are written.

    Raises:
        ModelError: a value that the type cannot hold.
    """
    for info in announced:
        dtype = np.dtype(np.float32)  # shapes are in elements; of uint8 they would be in bytes
        writer.add_tensor_info(info.name, info.shape, dtype, info.n_bytes, raw_dtype=info.type)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for info, tensor in zip(announced, tensors, strict=True):
            writer.write_tensor_data(_quantized(info, tensor))
            yield info.n_bytes
    finally:
        writer.close()


def _quantized(info: Announced, tensor: Tensor) -> np.ndarray:
    if tuple(tensor.shape) != info.shape:
        raise ValueError(f"{info} was announced, {tuple(tensor.shape)} came")
    values = tensor.detach().to("cpu").float().contiguous().numpy()
    with np.errstate(over="ignore"):
        quantized: np.ndarray = quantize(values, info.type)
    if info.type is _F16 and not np.isfinite(quantized).all():
        raise ModelError(f"{info.name} holds values that f16 cannot hold; give --outtype bf16")
    return quantized
