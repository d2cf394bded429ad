"""``gguf``: one file for llama.cpp and programs that are built on it."""

from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

from gguf import GGML_QUANT_VERSION, GGUFType, GGUFWriter, get_tensor_name_map
from torch import Tensor

from mqasearch.formats.converted import Converted
from mqasearch.formats.format import Format, Options, Serving
from mqasearch.formats.gguf_architectures import (
    Architecture,
    architecture_fault,
    architecture_of,
)
from mqasearch.formats.gguf_rope import add_rope_scaling, rope_factors, rope_fault
from mqasearch.formats.gguf_tensors import OUTTYPES, Announced, announce, write_tensors
from mqasearch.formats.gguf_tokenizer import TokenizerBlock

FILE_NAME = "model.gguf"
"""Name of the file; it is the same for every outtype, so that one command serves them all."""


class GGUF(Format):
    """A file in one of llama.cpp's architectures that allow layers with different KV heads."""

    name = "gguf"
    summary = "one file for llama.cpp; fewer KV heads in weights and cache"
    library = "gguf"
    refused_by = (
        "transformers, vLLM and MLX-LM do not read this file. llama.cpp saves the memory only with "
        "flash attention, which it takes by itself where it can: without it, it pads the values' "
        "cache of every layer to that of the widest."
    )
    outtypes = tuple(OUTTYPES)
    model_types = ("llama", "mistral", "qwen2", "qwen3")

    def fault(self, converted: Converted) -> str | None:
        config = converted.model.config
        architecture = architecture_of(config)
        return (
            architecture_fault(architecture, config, converted.announced(0))
            or rope_fault(config, architecture.rope_types, architecture.name)
            or _tokenizer_fault(converted)
        )

    def n_bytes(self, converted: Converted, options: Options) -> int:
        return sum(info.n_bytes for info in self._announced(converted, options))

    def write(self, converted: Converted, folder: Path, options: Options) -> Iterator[int]:
        config = converted.model.config
        architecture = architecture_of(config)
        writer = GGUFWriter(folder / FILE_NAME, architecture.name)
        writer.add_type(GGUFType.MODEL)
        writer.add_file_type(OUTTYPES[self._outtype(options)][1])
        writer.add_quantization_version(GGML_QUANT_VERSION)
        architecture.add_keys(writer, config, converted.kv_heads)
        add_rope_scaling(writer, config)
        block = TokenizerBlock.of(converted)
        assert block is not None  # fault() was called before
        block.add_to(writer)
        announced = self._announced(converted, options)
        tensors = chain(_shared(converted), converted.tensors(architecture.pack))
        yield from write_tensors(writer, announced, tensors)

    def serving(self, model_type: str) -> tuple[Serving, ...]:
        command = f"llama-server -m FOLDER/{FILE_NAME}"
        if model_type == "qwen3":  # may be Step35, the only architecture here with sliding layers
            note = (
                "# without --swa-full an answer may come from an earlier text's cache, and be wrong"
            )
            command = f"{note}\n{command} --swa-full"
        return (Serving("llama.cpp", command),)

    def _outtype(self, options: Options) -> str:
        return options.outtype or self.outtypes[0]

    def _announced(self, converted: Converted, options: Options) -> list[Announced]:
        outtype = self._outtype(options)
        architecture = architecture_of(converted.model.config)
        shared = [
            announce("rope_freqs.weight", tuple(tensor.shape), outtype)
            for tensor in _shared(converted)
        ]
        rename = _names(architecture, len(converted.kv_heads))
        return shared + [
            announce(rename(entry.name), entry.shape, outtype)
            for entry in converted.entries(architecture.pack)
        ]


def _shared(converted: Converted) -> list[Tensor]:
    """Tensors that llama.cpp has and transformers does not have."""
    factors = rope_factors(converted.model.config)
    return [] if factors is None else [factors]


def _names(architecture: Architecture, n_layers: int) -> Callable[[str], str]:
    """transformers' names of tensors → llama.cpp's."""
    table = get_tensor_name_map(architecture.arch, n_layers)

    def rename(name: str) -> str:
        found = table.get_name(name, try_suffixes=(".weight", ".bias"))
        assert found is not None, name
        return found

    return rename


def _tokenizer_fault(converted: Converted) -> str | None:
    block = TokenizerBlock.of(converted)
    return "its tokenizer has no tokenizer.json" if block is None else block.fault()
