"""Translations between transformers' attention layouts and ``AttentionWeights``: one per layout."""

from collections.abc import Mapping
from types import MappingProxyType

from mqasearch.errors import ModelError, UnknownNameError
from mqasearch.families.family import Family
from mqasearch.families.fused import GPT2Family, GPTNeoXFamily, Phi3Family
from mqasearch.families.separate import SeparateFamily
from mqasearch.families.weights import NO_ROPE, AttentionWeights, RopeLayout

_DOORS: tuple[Family, ...] = (
    SeparateFamily(("llama", "mistral", "qwen2", "gemma", "gemma2")),
    SeparateFamily(("qwen3",), has_qk_norm=True),
    SeparateFamily(("opt",), blocks_path="decoder.layers", output="out_proj", rope="none"),
    Phi3Family(),
    GPTNeoXFamily(),
    GPT2Family(),
)

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {model_type: door for door in _DOORS for model_type in door.model_types}
)
"""transformers' ``config.model_type`` → the family that handles it."""


COMPACT_SUFFIX = "_mqa"
"""Suffix of compact checkpoints' model type, so that no program takes them for the stock model."""


def family_of(model_type: str) -> Family:
    """The family of a model type.

    Raises:
        ModelError: it is the type of a compact checkpoint that mqasearch itself wrote.
        UnknownNameError: the type is not supported; the message lists those that are.
    """
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    if model_type.removesuffix(COMPACT_SUFFIX) in FAMILIES:
        raise ModelError(
            f"a model of type {model_type!r} was converted by mqasearch already; "
            "start from the original that its mask.json names"
        )
    raise UnknownNameError("model type", model_type, FAMILIES)


__all__ = [
    "COMPACT_SUFFIX",
    "FAMILIES",
    "NO_ROPE",
    "AttentionWeights",
    "Family",
    "RopeLayout",
    "family_of",
]
