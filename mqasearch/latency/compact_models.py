"""The model that ``mqasearch convert`` would write, in memory; it shares the original's weights."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from mqasearch.conversion import ConvertibleModel
from mqasearch.formats import CompactHF, compact_classes, format_of
from mqasearch.mask import KVHeads


class CompactModels:
    """Models with fewer KV heads, in weights and in cache, that share everything else.

    The code is that of format ``hf``. The weights are the original's own tensors, except those of
    converted attention layers. So any number of conversions take little more memory than one, and
    they can be measured in turns.
    """

    def __init__(self, convertible: ConvertibleModel) -> None:
        """Share a model's weights; it must stay unconverted as long as the models made here exist.

        Raises:
            ModelError: format ``hf`` cannot express the model type.
        """
        self._convertible = convertible
        self._model_type: str = convertible.model.config.model_type
        format_of(CompactHF.name, self._model_type)
        self._format = CompactHF()
        self._attentions: dict[tuple[int, int], dict[str, nn.Parameter]] = {}

    def model(self, kv_heads: KVHeads, *, even_original: bool = False) -> PreTrainedModel:
        """A model with these KV heads.

        If nothing is converted, it is the original itself; with ``even_original`` it has the code
        of converted models, whose attention may be faster for reasons besides its KV heads.

        Raises:
            MaskError: ``kv_heads`` does not fit the model.
            ModelError: the merge gave NaN or infinity.
        """
        self._convertible.check(kv_heads)
        original = self._convertible.model
        if kv_heads == self._convertible.shape.original and not even_original:
            return original
        settings = self._format.config(original, kv_heads)
        config_class, model_class = compact_classes(self._model_type)
        config: Any = config_class.from_dict(settings)
        config._attn_implementation = original.config._attn_implementation
        with torch.device("meta"):  # sizes only: the tensors are set below
            compact: Any = model_class(config).requires_grad_(False)
        compact.eval()
        compact.load_state_dict(self._state(kv_heads), assign=True)
        _share_buffers(compact, original)
        assert isinstance(compact, PreTrainedModel)
        return compact

    def _state(self, kv_heads: KVHeads) -> dict[str, Any]:
        model, family = self._convertible.model, self._convertible.family
        state = dict(model.state_dict(keep_vars=True))
        names = {id(module): name for name, module in model.named_modules()}
        for layer, block in enumerate(family.blocks(model)):
            name = names[id(family.attention(block))]
            for within, parameter in self._attention(layer, kv_heads[layer]).items():
                state[f"{name}.{within}"] = parameter
        return state

    def _attention(self, layer: int, heads: int) -> dict[str, nn.Parameter]:
        """One layer's parameters, made once; those that the merge keeps are the original's."""
        if (layer, heads) not in self._attentions:
            convertible = self._convertible
            family = convertible.family
            present = family.parameters(family.attention(family.blocks(convertible.model)[layer]))
            packed = family.pack_compact(convertible.merged(layer, heads))
            self._attentions[layer, heads] = {
                name: _parameter(tensor, present[name]) for name, tensor in packed.items()
            }
        return self._attentions[layer, heads]


def _parameter(tensor: torch.Tensor, present: nn.Parameter) -> nn.Parameter:
    moved = tensor.to(device=present.device, dtype=present.dtype)
    if moved.shape == present.shape and torch.equal(moved, present):
        return present
    # a transposed view gives the same results, but slower than the checkpoint would
    return nn.Parameter(moved.contiguous(), requires_grad=False)


def _share_buffers(compact: nn.Module, original: nn.Module) -> None:
    """Set the original's buffers; no state dict has them, and they do not depend on KV heads."""
    buffers = dict(original.named_buffers())
    for name, buffer in list(compact.named_buffers()):
        if buffer.is_meta:
            owner, _, leaf = name.rpartition(".")
            compact.get_submodule(owner).register_buffer(leaf, buffers[name], persistent=False)
