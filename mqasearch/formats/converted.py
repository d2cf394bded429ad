"""The converted model as formats write it: sizes first, then one merged layer after the other."""

from collections.abc import Callable, Iterator
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mqasearch.conversion import ConvertibleModel
from mqasearch.families import AttentionWeights
from mqasearch.formats.safetensors_stream import Entry
from mqasearch.mask import KVHeads
from mqasearch.merging import select_kv_heads

Pack = Callable[[AttentionWeights], dict[str, Tensor]]
"""One attention layer's tensors, by name within the attention."""


class Converted:
    """An original model, and the number of KV heads that each of its layers will have.

    Attributes:
        convertible: the original, and how its layers are merged.
        kv_heads: KV heads per layer, layer 0 first; they fit the model.
        tokenizer: the original's tokenizer.
        source: the folder of the original's files; None = the model was made in memory.
    """

    def __init__(
        self,
        convertible: ConvertibleModel,
        kv_heads: KVHeads,
        tokenizer: PreTrainedTokenizerBase,
        source: Path | None,
    ) -> None:
        self.convertible = convertible
        self.kv_heads = kv_heads
        self.tokenizer = tokenizer
        self.source = source
        self._places = _attention_places(convertible)

    @property
    def model(self) -> PreTrainedModel:
        """The original."""
        return self.convertible.model

    @property
    def model_type(self) -> str:
        """transformers' ``config.model_type`` of the original."""
        return str(self.model.config.model_type)

    def merged(self, layer: int) -> AttentionWeights:
        """The weights of one converted layer, on the CPU; the layer is merged now."""
        return self.convertible.merged(layer, self.kv_heads[layer])

    def announced(self, layer: int) -> AttentionWeights:
        """Tensors without data that have the sizes of ``merged(layer)``; nothing is merged."""
        weights = self.convertible.original(layer).to(device="meta")
        return select_kv_heads(weights, range(self.kv_heads[layer]))

    def entries(self, pack: Pack) -> list[Entry]:
        """Name, dtype and shape of every tensor of the model; no layer is merged."""
        return [
            Entry(name, tensor.dtype, tuple(tensor.shape))
            for name, tensor in self._walk(pack, self.announced)
        ]

    def tensors(self, pack: Pack) -> Iterator[Tensor]:
        """Every tensor, in the order of ``entries``; memory holds one merged layer at a time."""
        return (tensor for _, tensor in self._walk(pack, self.merged))

    def _walk(
        self, pack: Pack, weights_of: Callable[[int], AttentionWeights]
    ) -> Iterator[tuple[str, Tensor]]:
        """The model's tensors by name; the packed tensors of each attention come together."""
        done = set[int]()
        for name, tensor in _unshared(self.model):
            if name not in self._places:
                yield name, tensor
                continue
            layer, attention = self._places[name]
            if layer not in done:
                done.add(layer)
                for within, packed in pack(weights_of(layer)).items():
                    yield f"{attention}.{within}", packed


def _unshared(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """The state dict's items, with only the first name of each tied tensor."""
    seen = set[int]()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor


def _attention_places(convertible: ConvertibleModel) -> dict[str, tuple[int, str]]:
    """Name of each attention parameter in the state dict → (layer, name of the attention)."""
    model, family = convertible.model, convertible.family
    names = {id(module): name for name, module in model.named_modules()}
    places = {}
    for layer, block in enumerate(family.blocks(model)):
        attention = family.attention(block)
        for within in family.parameters(attention):
            places[f"{names[id(attention)]}.{within}"] = (layer, names[id(attention)])
    return places
