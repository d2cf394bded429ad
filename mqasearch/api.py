"""What Python users call: ``mqasearch.load``, ``mqasearch.apply`` and ``mqasearch.convert``."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mqasearch.checkpoint import (
    Applied,
    Checkpoint,
    apply_document,
    apply_heads,
    check_request,
    confirm_conversion,
    convert_checkpoint,
    heal_for_mask,
    load_converted,
    load_original,
    with_heal,
    with_refit,
)
from mqasearch.errors import UserError
from mqasearch.export import checked_mask, read_mask
from mqasearch.files import check_output
from mqasearch.formats import MAX_SHARD_BYTES, Options
from mqasearch.heal_recipe import recipe_of
from mqasearch.healing import Watch
from mqasearch.mask import KVHeads
from mqasearch.scoring import calibrate_for_mask

__all__ = ["Applied", "Checkpoint", "apply", "convert", "load"]

PathLike: TypeAlias = str | os.PathLike[str]
Mask: TypeAlias = PathLike | Mapping[str, object] | Sequence[int]
"""The path of a mask JSON, its content, or the number of KV heads of each layer."""


def load(
    folder: PathLike,
    *,
    device: str = "cpu",
    dtype: str | None = None,
    attn_implementation: str | None = None,
) -> PreTrainedModel:
    """The model of a folder that ``mqasearch convert`` wrote, ready for transformers' ``generate``.

    ::

        >>> model = mqasearch.load("converted")
        >>> inputs = tokenizer("Once upon a time", return_tensors="pt")
        >>> tokens = model.generate(**inputs, max_new_tokens=20)

    Folders of the formats ``hf``, ``expanded`` and ``nemotron-nas`` are loaded, by mqasearch's own
    modeling code: no code of the folder runs. Load the tokenizer, which reads the config too, by
    ``AutoTokenizer.from_pretrained("converted", config=model.config)``.

    Args:
        folder: what ``convert`` wrote.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N``, ``mps``.
        dtype: ``auto``, ``float32``, ``bfloat16``, ``float16``; None = as it was written.
        attn_implementation: as in transformers' ``from_pretrained``.

    Raises:
        UserError: not a folder that ``convert`` wrote, or one for a program other than
            transformers.
        ModelError: incomplete weights, or no such device or dtype.
    """
    return load_converted(Path(folder), device=device, dtype=dtype, attention=attn_implementation)


def apply(
    model: PreTrainedModel,
    mask: Mask,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    selector: str | None = None,
) -> Applied:
    """Give the layers of a live transformers model the KV heads of a mask.

    ::

        >>> with mqasearch.apply(model, "mask.json", tokenizer=tokenizer):
        ...     converted = model.generate(**inputs, max_new_tokens=20)
        >>> original = model.generate(**inputs, max_new_tokens=20)

    Without ``with`` the mask stays until ``.restore()``. The model keeps its shapes and computes
    what the converted one does; only ``convert`` makes the cache smaller.

    Args:
        model: a model of the mask's sizes; its weights are used as they are.
        mask: a mask JSON, its path, or KV heads per layer, layer 0 first, which are merged by
            ``mean``.
        tokenizer: the model's tokenizer, for masks whose merge is calibrated on text; None = the
            one at ``model.name_or_path``.
        selector: whose mask, of several in a file; None = the best.

    Raises:
        MaskError: a broken mask, or one that does not fit the model.
        ModelError, UnknownNameError: a model that cannot be converted.
        UserError: a mask is applied already, or the tokenizer is needed and not known.
    """
    document = _document(mask, selector)
    if isinstance(document, Mapping):
        return apply_document(model, document, tokenizer)
    return apply_heads(model, document)


def convert(
    mask: Mask,
    out_dir: PathLike,
    *,
    model: PathLike | None = None,
    format: str = "hf",
    outtype: str | None = None,
    dtype: str | None = None,
    device: str = "cpu",
    selector: str | None = None,
    refit: str | None = None,
    heal: int | str | None = None,
    heal_tokens: int | None = None,
    confirm: int | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: Callable[[int, int], None] | None = None,
    watch_heal: Watch | None = None,
) -> Checkpoint:
    """Write the converted model as a checkpoint for serving, as ``mqasearch convert`` does.

    ::

        >>> checkpoint = mqasearch.convert("mask.json", "converted", model="original")
        >>> checkpoint.kv_heads
        (1, 4, 2)

    Args:
        mask: a mask JSON, its path, or KV heads per layer, layer 0 first, which are merged by
            ``mean``.
        out_dir: must not exist, or be empty; appears whole or not at all.
        model: where the original is; None = where the mask says.
        format: a name in ``mqasearch.formats.FORMATS``.
        outtype: type of the weights, for formats that have a choice.
        dtype: dtype of the weights: ``auto``, ``float32``, ``bfloat16``, ``float16``; None = the
            one in which the mask was scored.
        device: device that a calibration runs on: ``auto``, ``cpu``, ``cuda``, ``cuda:N``, ``mps``.
        selector: whose mask, of several in a file; None = the best.
        refit: ``parallel``, ``sequential`` or ``none``; None = the mask's own.
        heal: steps of distillation from the original, or ``auto``; None = as the mask says, which
            means no healing unless it was healed before; 0 = no healing.
        heal_tokens: number of different calibration tokens to heal on; None = as many as the steps
            see.
        confirm: held-out documents per task to score the original, the mask and the healed mask
            on; 0 = all there are, None = no confirmation.
        revision: revision of a hub id; None = the mask's own.
        trust_remote_code: run Python code that comes with the original.
        max_shard_bytes: size of the largest weights file.
        progress: called with (bytes written, bytes in all) after every tensor.
        watch_heal: called after every step of a healing.

    Raises:
        MaskError: a broken mask, or one of another model.
        ModelError, UnknownNameError: no such model, format or outtype, or one that does not fit.
        UserError: no room, or a folder that is in use; and all that ``load_model`` raises.
    """
    out_dir, options = Path(out_dir), Options(outtype, max_shard_bytes)
    check_output(out_dir, 0)
    moved_to = None if model is None else os.fspath(model)
    document = _of_model(_document(mask, selector), moved_to, refit, revision)
    document = _to_heal(document, heal, heal_tokens, is_confirmed=confirm is not None)
    of_mask = document["model"] if isinstance(document, Mapping) else {"id": moved_to}
    loaded = load_original(
        of_mask,
        moved_to=moved_to,
        revision=revision,
        device=device,
        dtype=dtype or (document.get("dtype") if isinstance(document, Mapping) else None) or "auto",
        trust_remote_code=trust_remote_code,
    )
    check_request(document, loaded, out_dir, format, options)
    statistics = healed = confirmation = None
    if isinstance(document, Mapping):
        statistics = calibrate_for_mask(loaded, document)
        healed = heal_for_mask(loaded, document, statistics, watch=watch_heal)
        if confirm is not None:
            layers = None if healed is None else healed.layers
            confirmation = confirm_conversion(loaded, document, statistics, layers, confirm or None)
    return convert_checkpoint(
        document,
        loaded,
        out_dir,
        format=format,
        options=options,
        statistics=statistics,
        healed=healed,
        confirmation=confirmation,
        progress=progress,
    )


def _of_model(
    document: dict[str, Any] | KVHeads,
    moved_to: str | None,
    refit: str | None,
    revision: str | None,
) -> dict[str, Any] | KVHeads:
    """The mask with the refit and the revision of its model that were asked for."""
    if not isinstance(document, Mapping):
        if moved_to is None or refit is not None:
            raise UserError("KV heads name no model and no refit: give model=, and no refit")
        return document
    if refit is not None:
        document = with_refit(document, refit)
    if revision is not None and moved_to is None:
        document["model"]["revision"] = revision
    return document


def _to_heal(
    document: dict[str, Any] | KVHeads,
    heal: int | str | None,
    n_tokens: int | None,
    *,
    is_confirmed: bool,
) -> dict[str, Any] | KVHeads:
    """The mask with the healing that was asked for."""
    if not isinstance(document, Mapping):
        if heal is not None or is_confirmed:
            raise UserError("KV heads name no task to heal or to confirm on: give a mask JSON")
        return document
    if heal is None:
        if n_tokens is not None:
            raise UserError("heal tokens are for a healing: give heal (--heal) too")
        return document
    recipe = recipe_of(heal)
    return with_heal(document, recipe if recipe.n_steps else None, n_tokens)


def _document(mask: Mask, selector: str | None) -> dict[str, Any] | KVHeads:
    """The mask as a mask JSON that is read and checked, or as KV heads."""
    if isinstance(mask, str | os.PathLike):
        return read_mask(Path(mask), selector)
    if selector is not None:
        raise UserError(f"selector {selector!r} chooses among the masks of a file: give its path")
    if isinstance(mask, Mapping):
        return checked_mask(mask)
    return tuple(mask)
