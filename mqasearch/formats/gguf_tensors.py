"""Tensors of a GGUF file: first all of them are announced, then each is written."""

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
"""``--outtype`` → type of the matrices, and type of the file.

The first, f16, is the default: it has half the bytes of f32, every backend of llama.cpp computes
it, and it rounds to 11 bits, while bf16 rounds to 8.
"""


@dataclass(frozen=True, slots=True)
class Announced:
    """A tensor that will be written.

    Attributes:
        name: llama.cpp's name of the tensor.
        shape: sizes, rows first.
        type: type of its elements in the file.
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
    """A tensor of that outtype, if possible.

    Norms and biases stay f32. If a row cannot be divided into blocks of the outtype, the tensor is
    f16, as in llama.cpp's converter.
    """
    wanted = OUTTYPES[outtype][0] if len(shape) > 1 else _F32
    block, _ = GGML_QUANT_SIZES[wanted]
    return Announced(name, shape, _F16 if shape[-1] % block else wanted)


def write_tensors(
    writer: GGUFWriter, announced: Sequence[Announced], tensors: Iterable[Tensor]
) -> Iterator[int]:
    """Write the file: keys that ``writer`` has, then ``tensors`` one by one.

    Args:
        writer: a writer that has a path, and has written nothing yet.
        announced: name, shape and type of each tensor, in order.
        tensors: the tensors, in the same order; only one is held at a time.

    Yields:
        The bytes of each tensor once they are written.

    Raises:
        ModelError: the type cannot hold a value of a tensor.
    """
    for info in announced:
        dtype = np.dtype(np.float32)  # shapes are in elements; for uint8 they would be in bytes
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
