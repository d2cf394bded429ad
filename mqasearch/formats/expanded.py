"""``expanded``: merged KV heads repeated up to the original number, in the original's shapes."""

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from mqasearch.families import FAMILIES, AttentionWeights
from mqasearch.formats.config import stock_config, write_config
from mqasearch.formats.converted import Converted, Pack
from mqasearch.formats.format import Format, Options, Serving
from mqasearch.formats.positions import rope_words
from mqasearch.formats.safetensors_stream import write_sharded
from mqasearch.formats.tokenizer import write_tokenizer


class Expanded(Format):
    """The original's architecture; every program that loads the original loads this too."""

    name = "expanded"
    summary = "the original's architecture; loads anywhere without remote code, saves no memory"
    library = "transformers"
    saves_memory = False
    model_types = tuple(FAMILIES)

    def n_bytes(self, converted: Converted, options: Options) -> int:
        return sum(entry.n_bytes for entry in converted.entries(_pack(converted)))

    def write(self, converted: Converted, folder: Path, options: Options) -> Iterator[int]:
        pack = _pack(converted)
        entries, tensors = converted.entries(pack), converted.tensors(pack)
        for entry in write_sharded(folder, entries, tensors, options.max_shard_bytes):
            yield entry.n_bytes
        write_tokenizer(folder, converted)
        config = stock_config(converted.model) | rope_words(converted.model.config)
        write_config(folder, converted.model, config)

    def serving(self, model_type: str) -> tuple[Serving, ...]:
        return (
            Serving(
                "transformers",
                "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
                "model = AutoModelForCausalLM.from_pretrained(FOLDER)\n"
                "tokenizer = AutoTokenizer.from_pretrained(FOLDER)",
                "python",
            ),
        )


def _pack(converted: Converted) -> Pack:
    family, n_kv_heads = converted.convertible.family, converted.convertible.shape.n_kv_heads

    def pack(weights: AttentionWeights) -> dict[str, Tensor]:
        return family.pack(weights.replicated(n_kv_heads))

    return pack
