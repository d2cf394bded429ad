"""What a family must do: find attention layers, read their weights, and replace them in place."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mqasearch.errors import ModelError
from mqasearch.families.weights import AttentionWeights


class Family(ABC):
    """One weight layout of transformers. It has no state; one instance serves all models.

    No other code depends on the names of the projections in a checkpoint, on whether they are
    fused, or on whether they are stored transposed. ``unpack`` and ``pack`` translate, and each is
    the inverse of the other; the rest is the same in every family.

    Example:
        >>> from mqasearch.families import family_of
        >>> family_of("qwen3").projections
        ('q_proj', 'k_proj', 'v_proj', 'o_proj')

    Attributes:
        model_types: transformers' ``config.model_type`` of the models that it handles.
        blocks_path: path of the list of decoder layers inside the base model, as ``"layers"``.
        attention_path: path of the attention inside a decoder layer, as ``"self_attn"``.
        projections: the linear modules inside the attention that hold its weights; the first
            reads the attention's input, the last is the output projection.
    """

    def __init__(
        self,
        model_types: Sequence[str],
        *,
        blocks_path: str,
        attention_path: str,
        projections: Sequence[str],
    ) -> None:
        self.model_types = tuple(model_types)
        self.blocks_path = blocks_path
        self.attention_path = attention_path
        self.projections = tuple(projections)

    @abstractmethod
    def unpack(self, attention: nn.Module, parameters: Mapping[str, Tensor]) -> AttentionWeights:
        """The weights in our form.

        Args:
            attention: the module; only its sizes and its rotary layout are used.
            parameters: tensors by name within the attention, as ``q_proj.weight``. Views of them
                are returned if the layout allows it, so treat the result as read-only.
        """

    @abstractmethod
    def pack(self, weights: AttentionWeights) -> dict[str, Tensor]:
        """The inverse of ``unpack``, for as many KV heads as ``weights`` has.

        Tensors that the layout stores unchanged are returned as views, not as copies.

        Raises:
            ValueError: the layout cannot store fewer KV heads than query heads.
        """

    def pack_compact(self, weights: AttentionWeights) -> dict[str, Tensor]:
        """``pack`` for checkpoints that come with our own modeling file.

        It gives the same names, with rows only for the KV heads that ``weights`` has. It differs
        from ``pack`` if the stock layout cannot store fewer KV heads than query heads.
        """
        return self.pack(weights)

    def blocks(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        """The decoder layers, layer 0 first.

        Raises:
            ModelError: the model's modules are not those of its model type.
        """
        blocks = _submodule(model.base_model, self.blocks_path, model.config.model_type)
        return tuple(cast(nn.ModuleList, blocks))

    def attention(self, block: nn.Module) -> nn.Module:
        """The attention of one decoder layer.

        Raises:
            ModelError: the layer has no attention at ``attention_path``.
        """
        return _submodule(block, self.attention_path, type(block).__name__)

    def parameters(self, attention: nn.Module) -> dict[str, nn.Parameter]:
        """The live parameters of the projections, by name within the attention.

        Raises:
            ModelError: a projection is missing, or quantised.
        """
        found: dict[str, nn.Parameter] = {}
        for projection in self.projections:
            module = _submodule(attention, projection, type(attention).__name__)
            for name, parameter in module.named_parameters(recurse=False):
                if not parameter.is_floating_point():
                    raise ModelError(
                        f"{projection}.{name} of {type(attention).__name__} is quantised "
                        f"({parameter.dtype}); load the model in float32, bfloat16 or float16"
                    )
                found[f"{projection}.{name}"] = parameter
        return found

    def input_projection(self, attention: nn.Module) -> nn.Module:
        """A projection that reads the attention's input."""
        return attention.get_submodule(self.projections[0])

    def output_projection(self, attention: nn.Module) -> nn.Module:
        """The output projection."""
        return attention.get_submodule(self.projections[-1])

    def read(self, attention: nn.Module) -> AttentionWeights:
        """The weights of one attention layer, detached; views of the parameters if possible.

        Raises:
            ModelError: the layer's modules are not those of its model type, or it is quantised.
        """
        parameters = {name: p.detach() for name, p in self.parameters(attention).items()}
        return self.unpack(attention, parameters)

    def stock_parameters(
        self, weights: AttentionWeights, n_kv_heads: int, present: Mapping[str, nn.Parameter]
    ) -> dict[str, nn.Parameter]:
        """Parameters of the stock shapes that make a layer compute ``weights``.

        Merged KV heads are repeated. If a parameter would equal the one in ``present``, the one in
        ``present`` is used, so that nothing is stored twice.

        Args:
            weights: weights whose number of KV heads is ``n_kv_heads`` or a divisor of it.
            n_kv_heads: KV heads of the stock layer.
            present: the layer's ``parameters``; they decide shapes, dtype and device.

        Raises:
            ValueError: ``weights`` does not fit the layer (heads, sizes, a bias it cannot hold).
        """
        packed = self.pack(weights.replicated(n_kv_heads))
        if sizes(packed) != sizes(present):
            raise ValueError(f"weights of sizes {sizes(packed)} for a layer of {sizes(present)}")
        return {name: _parameter(tensor, present[name]) for name, tensor in packed.items()}

    def install(self, attention: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
        """Put these parameter objects themselves into the layer, not copies."""
        for name, parameter in parameters.items():
            projection, _, attribute = name.rpartition(".")
            setattr(attention.get_submodule(projection), attribute, parameter)

    def write(self, attention: nn.Module, weights: AttentionWeights) -> None:
        """Make the layer compute ``weights``, in stock shapes and the layer's dtype and device.

        New parameter objects are installed; a caller that kept the old ones may ``install`` them
        again.

        Raises:
            ValueError: ``weights`` does not fit the layer.
        """
        n_kv_heads = self.read(attention).n_kv_heads
        present = self.parameters(attention)
        self.install(attention, self.stock_parameters(weights, n_kv_heads, present))


def sizes(parameters: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Name → shape."""
    return {name: tuple(tensor.shape) for name, tensor in parameters.items()}


def _submodule(module: nn.Module, path: str, owner: str) -> nn.Module:
    try:
        return module.get_submodule(path)
    except AttributeError:
        raise ModelError(
            f"{owner} has no {path!r} where transformers' own code has it; "
            "load the model without trust_remote_code"
        ) from None


def _parameter(tensor: Tensor, present: nn.Parameter) -> nn.Parameter:
    cast = tensor.detach().to(dtype=present.dtype, device=present.device)
    if torch.equal(cast, present):
        return present
    # clone, since a view would keep a larger tensor in memory
    fresh = cast.clone(memory_format=torch.contiguous_format)
    return nn.Parameter(fresh, requires_grad=present.requires_grad)
