"""Apply a mask to a live model, and restore the model."""

import hashlib
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self
from weakref import WeakSet

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from mqasearch.checkpoint.healed_mask import heal_for_mask
from mqasearch.conversion import ConvertibleModel
from mqasearch.errors import UserError
from mqasearch.export import check_model
from mqasearch.families import family_of
from mqasearch.healing import Healed
from mqasearch.mask import KVHeads
from mqasearch.merging import Statistics, merge_of
from mqasearch.models import LoadedModel, shape_of
from mqasearch.scoring import calibrate_for_mask

_CONVERTED: WeakSet[PreTrainedModel] = WeakSet()
"""Models that a mask is applied to now."""


class Applied:
    """A live model with a mask applied; the end of a ``with`` block restores the original.

    The model keeps its shapes: merged KV heads are repeated, which gives the numbers of the model
    that really has fewer heads, but saves no memory. Layers are swapped by reference, so the
    original is restored bit for bit.

    Attributes:
        model: the live model.
        kv_heads: KV heads per layer, layer 0 first.
    """

    def __init__(self, convertible: ConvertibleModel, kv_heads: KVHeads) -> None:
        """Apply ``kv_heads``; callers use ``mqasearch.apply`` instead."""
        self._convertible = convertible
        self.model = convertible.model
        self.kv_heads = kv_heads
        convertible.apply(kv_heads)
        _CONVERTED.add(self.model)
        self._is_on = True

    def restore(self) -> None:
        """Give the model its own layers again; a second call does nothing."""
        if self._is_on:
            self._convertible.apply(self._convertible.shape.original)
            _CONVERTED.discard(self.model)
            self._is_on = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.restore()


def apply_heads(model: PreTrainedModel, kv_heads: KVHeads) -> Applied:
    """Apply KV heads that are given without a mask JSON, merged by their mean.

    Raises:
        MaskError, ModelError, UnknownNameError: as in ``ConvertibleModel``.
        UserError: a mask is applied already.
    """
    _check_free(model)
    family = family_of(model.config.model_type)
    return Applied(ConvertibleModel(model, family, merge_of("mean")), kv_heads)


def apply_document(
    model: PreTrainedModel,
    document: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Applied:
    """Apply a mask JSON; calibrate first if its merge needs that, and heal if it asks for that.

    Args:
        model: a model with the mask's sizes; its weights are taken as they are, and may differ
            from those that the mask was found on.
        document: the mask JSON as ``read_mask`` returns it.
        tokenizer: for calibration; None = the one at ``model.name_or_path``.

    Raises:
        MaskError, ModelError, UnknownNameError: the mask does not fit the model.
        UserError: a mask is applied already, or the tokenizer is needed but not known.
        AssetError: as in ``calibrate_for_mask``.
    """
    _check_free(model)
    family = family_of(model.config.model_type)
    check_model(document, shape_of(model, model.dtype), document["model"]["fingerprint"] or "")
    merge = merge_of(**document["merge"])
    statistics = healed = None
    if merge.reads_calibration or "healed" in document:
        # refuse a mask that does not fit before the calibration, not after it
        ConvertibleModel(model, family, merge_of("mean")).check(tuple(document["kv_heads"]))
        statistics, healed = _calibrated(model, document, tokenizer)
    layers = None if healed is None else healed.layers
    convertible = ConvertibleModel(model, family, merge, statistics, layers)
    return Applied(convertible, tuple(document["kv_heads"]))


def _check_free(model: PreTrainedModel) -> None:
    if model in _CONVERTED:
        raise UserError(
            "a mask is applied to this model already: restore() it first, or leave its with block"
        )


def _calibrated(
    model: PreTrainedModel, document: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase | None
) -> tuple[Statistics | None, Healed | None]:
    loaded = LoadedModel(
        model=model,
        tokenizer=tokenizer or _tokenizer_of(model, document["merge"]["name"]),
        name=model.name_or_path or "the model in memory",
        fingerprint=_digest(model),
        device=model.device,
        dtype=model.dtype,
    )
    is_training = model.training
    model.train(False)  # else the calibration would be done with dropout
    try:
        statistics = calibrate_for_mask(loaded, document)
        return statistics, heal_for_mask(loaded, document, statistics)
    finally:
        model.train(is_training)


def _tokenizer_of(model: PreTrainedModel, merge: str) -> PreTrainedTokenizerBase:
    why = f"the mask, merged by {merge!r}, is fitted to text, and the model's tokenizer"
    if not model.name_or_path:
        raise UserError(f"{why} is not known: give tokenizer=")
    try:
        found = AutoTokenizer.from_pretrained(model.name_or_path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{why} cannot be loaded from {model.name_or_path}: give tokenizer="
        ) from error
    assert isinstance(found, PreTrainedTokenizerBase)
    return found


def _digest(model: PreTrainedModel) -> str:
    """SHA-256 (hex) of the config and the weights in memory: part of a calibration's cache key."""
    digest = hashlib.sha256(model.config.to_json_string().encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name}:{tensor.dtype}:{list(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return f"live:{digest.hexdigest()}"
