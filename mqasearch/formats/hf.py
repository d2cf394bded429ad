"""``hf``: only the remaining KV heads, with the Python code that reads them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedModel

from mqasearch import __version__
from mqasearch.families import COMPACT_SUFFIX
from mqasearch.formats.config import stock_config, template, write_config
from mqasearch.formats.converted import Converted
from mqasearch.formats.format import Format, Options, Serving
from mqasearch.formats.safetensors_stream import write_sharded
from mqasearch.formats.tokenizer import write_tokenizer
from mqasearch.mask import KVHeads
from mqasearch.models import KV_HEADS_KEY, shape_of


class CompactHF(Format):
    """A folder for transformers and vLLM that contains the model's Python code.

    vLLM runs it with its Transformers backend: it takes the model's Python code from the folder,
    and replaces transformers' attention and cache by its own, sized layer by layer.
    """

    name = "hf"
    summary = "fewer KV heads in weights and cache; needs trust_remote_code=True"
    library = "transformers"
    refused_by = (
        "SGLang does not load this folder, as it takes one number of KV heads for all layers; "
        "llama.cpp and MLX do not run its Python code."
    )
    _STOCK: ClassVar[Mapping[str, str]] = {
        "llama": "Llama",
        "mistral": "Mistral",
        "qwen2": "Qwen2",
        "qwen3": "Qwen3",
        "gemma": "Gemma",
        "gemma2": "Gemma2",
    }
    model_types = (*_STOCK, "opt", "phi3", "gpt_neox", "gpt2")

    def n_bytes(self, converted: Converted, options: Options) -> int:
        pack = converted.convertible.family.pack_compact
        return sum(entry.n_bytes for entry in converted.entries(pack))

    def write(self, converted: Converted, folder: Path, options: Options) -> Iterator[int]:
        pack = converted.convertible.family.pack_compact
        entries, tensors = converted.entries(pack), converted.tensors(pack)
        for entry in write_sharded(folder, entries, tensors, options.max_shard_bytes):
            yield entry.n_bytes
        write_tokenizer(folder, converted)
        for name, text in self.code(converted.model_type).items():
            (folder / name).write_text(text, encoding="utf-8")
        write_config(folder, converted.model, self.config(converted.model, converted.kv_heads))

    def config(self, model: PreTrainedModel, kv_heads: KVHeads) -> dict[str, Any]:
        """The contents of config.json.

        ``per_layer_config`` is transformers' own way to say how layers differ. vLLM sizes every
        layer's attention and cache by it, and transformers its static cache. Both also read the
        number of KV heads of all other layers, which the configs of multi-head models do not state.
        """
        n_kv_heads = shape_of(model, model.dtype).n_kv_heads
        digits = len(str(len(kv_heads) - 1))  # so that sorting the JSON's keys sorts the layers
        return stock_config(model) | {
            "model_type": f"{model.config.model_type}{COMPACT_SUFFIX}",
            "architectures": ["MqaForCausalLM"],
            "auto_map": {
                "AutoConfig": "modeling_mqa.MqaConfig",
                "AutoModel": "modeling_mqa.MqaModel",
                "AutoModelForCausalLM": "modeling_mqa.MqaForCausalLM",
            },
            "num_key_value_heads": n_kv_heads,
            "per_layer_config": {
                str(layer).zfill(digits): {"num_key_value_heads": heads}
                for layer, heads in enumerate(kv_heads)
                if heads != n_kv_heads
            },
            "allow_global_per_layer_attribute_access": True,
            KV_HEADS_KEY: list(kv_heads),
        }

    def code(self, model_type: str) -> dict[str, str]:
        """The Python files of the folder, by name."""
        stock = self._STOCK.get(model_type)
        text = template(model_type if stock is None else "separate")
        values = {"stock": stock, "model_type": model_type, "version": __version__}
        for name, value in values.items():
            text = text.replace(f"{{{name}}}", str(value))
        return {"modeling_mqa.py": text, "attention_mqa.py": template("attention_mqa")}

    def serving(self, model_type: str) -> tuple[Serving, ...]:
        return (
            Serving(
                "transformers",
                "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
                "model = AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)\n"
                "tokenizer = AutoTokenizer.from_pretrained(FOLDER, trust_remote_code=True)",
                "python",
            ),
            Serving("vLLM", "vllm serve FOLDER --trust-remote-code --host 127.0.0.1"),
        )
