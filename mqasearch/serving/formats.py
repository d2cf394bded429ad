"""The checkpoint formats that a converted model can be written in, as data."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from importlib.resources import files
from types import MappingProxyType
from typing import Any, ClassVar

from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from mqasearch import __version__
from mqasearch.errors import ModelError, UnknownNameError
from mqasearch.families import COMPACT_SUFFIX, FAMILIES, AttentionWeights, Family
from mqasearch.mask import KVHeads
from mqasearch.models import KV_HEADS_KEY


class Format(ABC):
    """How weights, config and code are laid out on disk.

    Attributes:
        name: ``--format`` of ``mqasearch convert``.
        summary: one line for the command line.
        load_options: Python, what ``from_pretrained`` needs besides the folder.
        model_types: the model types that it can express.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    load_options: ClassVar[str] = ""
    model_types: ClassVar[Iterable[str]]

    @abstractmethod
    def pack(self, family: Family, weights: AttentionWeights, n_kv_heads: int) -> dict[str, Tensor]:
        """One attention layer's tensors, by name within the attention.

        Args:
            family: of the model.
            weights: with the KV heads of the converted layer.
            n_kv_heads: of the original model's layers.
        """

    def config(self, model: PreTrainedModel, kv_heads: KVHeads) -> dict[str, Any]:
        """The contents of config.json."""
        config: dict[str, Any] = json.loads(model.config.to_json_string(use_diff=True))
        config.pop("_name_or_path", None)  # a path of this machine
        config.pop("auto_map", None)  # the original's own code does not go along
        stock = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model.config.model_type)
        config["architectures"] = [stock or type(model).__name__]
        config["dtype"] = str(model.dtype).removeprefix("torch.")
        return config

    def code(self, model_type: str) -> dict[str, str]:
        """Python files that the checkpoint needs, by name."""
        return {}


class Expanded(Format):
    """Merged KV heads repeated up to the original number: the original's very shapes."""

    name = "expanded"
    summary = "the original's architecture; loads anywhere without remote code, saves no memory"
    model_types = tuple(FAMILIES)

    def pack(self, family: Family, weights: AttentionWeights, n_kv_heads: int) -> dict[str, Tensor]:
        return family.pack(weights.replicated(n_kv_heads))


class CompactHF(Format):
    """Only the KV heads that are left, with the Python code that reads them."""

    name = "hf"
    summary = "fewer KV heads in weights and cache; needs trust_remote_code=True"
    load_options = "trust_remote_code=True"
    _STOCK: ClassVar[Mapping[str, str]] = {
        "llama": "Llama",
        "mistral": "Mistral",
        "qwen2": "Qwen2",
        "qwen3": "Qwen3",
        "gemma": "Gemma",
        "gemma2": "Gemma2",
    }
    model_types = (*_STOCK, "opt", "phi3", "gpt_neox", "gpt2")

    def pack(self, family: Family, weights: AttentionWeights, n_kv_heads: int) -> dict[str, Tensor]:
        return family.pack_compact(weights)

    def config(self, model: PreTrainedModel, kv_heads: KVHeads) -> dict[str, Any]:
        return super().config(model, kv_heads) | {
            "model_type": f"{model.config.model_type}{COMPACT_SUFFIX}",
            "architectures": ["MqaForCausalLM"],
            "auto_map": {
                "AutoConfig": "modeling_mqa.MqaConfig",
                "AutoModelForCausalLM": "modeling_mqa.MqaForCausalLM",
            },
            KV_HEADS_KEY: list(kv_heads),
        }

    def code(self, model_type: str) -> dict[str, str]:
        stock = self._STOCK.get(model_type)
        template = _template(model_type if stock is None else "separate")
        values = {"stock": stock, "model_type": model_type, "version": __version__}
        for name, value in values.items():
            template = template.replace(f"{{{name}}}", str(value))
        return {"modeling_mqa.py": template, "attention_mqa.py": _template("attention_mqa")}


def _template(name: str) -> str:
    folder = files("mqasearch.serving").joinpath("modeling")
    return folder.joinpath(f"{name}.py.txt").read_text(encoding="utf-8")


FORMATS: Mapping[str, Format] = MappingProxyType(
    {written.name: written for written in (CompactHF(), Expanded())}
)
"""Name → format."""


def format_of(name: str, model_type: str) -> Format:
    """The format of that name, for a model of that type.

    Raises:
        UnknownNameError: no such format.
        ModelError: the format cannot express the model type; says which formats can.
    """
    if name not in FORMATS:
        raise UnknownNameError("format", name, FORMATS)
    if model_type not in FORMATS[name].model_types:
        able = [other.name for other in FORMATS.values() if model_type in other.model_types]
        raise ModelError(
            f"format {name!r} cannot express a {model_type} model; "
            f"formats that can: {', '.join(able) or 'none'}"
        )
    return FORMATS[name]
