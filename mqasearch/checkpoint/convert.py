"""From a mask and a loaded model to a checkpoint folder that other software loads."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mqasearch import __version__
from mqasearch.checkpoint.card import model_card
from mqasearch.checkpoint.confirmation import Confirmation, with_confirmation
from mqasearch.checkpoint.healed_mask import PLACE, told
from mqasearch.checkpoint.reproduce_json import write_record
from mqasearch.conversion import ConvertibleModel
from mqasearch.errors import UnknownNameError
from mqasearch.export import SCHEMA_VERSION, check_model, without_evidence, write_masks
from mqasearch.families import family_of
from mqasearch.files import check_output, whole_folder
from mqasearch.formats import (
    DEFAULTS,
    Converted,
    Format,
    Options,
    check_expressible,
    check_outtype,
    format_of,
)
from mqasearch.healing import Healed
from mqasearch.mask import KVHeads, LayerMask
from mqasearch.merging import Merge, Statistics, merge_of
from mqasearch.models import LoadedModel, is_remote

logger = logging.getLogger(__name__)

REFITS = ("parallel", "sequential", "none")
"""How a converted layer's output projection is fitted, see ``with_refit``."""
_SMALL_FILES_BYTES = 64 * 10**6  # more than tokenizer, code and card take


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What was written.

    Attributes:
        folder: the folder.
        format: name of the format.
        kv_heads: KV heads per layer, layer 0 first.
        weight_bytes: bytes of all tensors.
        confirmation: held-out results, if they were asked for.
    """

    folder: Path
    format: str
    kv_heads: KVHeads
    weight_bytes: int
    confirmation: Confirmation | None = None


def convert_checkpoint(
    mask: Mapping[str, Any] | KVHeads,
    loaded: LoadedModel,
    out_dir: Path,
    *,
    format: str = "hf",
    options: Options = DEFAULTS,
    merge: Merge | None = None,
    statistics: Statistics | None = None,
    healed: Healed | None = None,
    confirmation: Confirmation | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Checkpoint:
    """Write the converted model, its tokenizer, mask JSON, model card and ``reproduce.json``.

    The live model is not changed. Layers are merged and written one after the other, so memory
    holds only the model and one merged layer. ``out_dir`` appears only once all its files are
    complete and on the disk.

    Args:
        mask: a mask JSON as ``read_mask`` returns it, or KV heads per layer.
        loaded: the original model, in the dtype that is to be written.
        out_dir: a folder that does not exist or is empty.
        format: a name in ``formats.FORMATS``.
        options: the format's options.
        merge: the merge; None = the mask JSON's, or ``mean`` if there are only KV heads.
        statistics: calibration of ``loaded``, for merges that read it; for a mask JSON, the result
            of ``calibrate_for_mask``.
        healed: the result of ``heal_for_mask``.
        confirmation: held-out results of exactly these weights.
        progress: called with (bytes written, bytes in all) after every tensor.

    Raises:
        UnknownNameError: an unknown model type, format or merge.
        ModelError: a format that cannot express the model; a model that cannot be converted.
        MaskError: a mask of another model, or one that does not fit.
        UserError: no room on the disk, or a folder that is in use or cannot be written.
    """
    model_type = loaded.model.config.model_type
    family = family_of(model_type)
    convertible = ConvertibleModel(
        loaded.model,
        family,
        merge or _merge_of(mask),
        statistics,
        None if healed is None else healed.layers,
    )
    written = format_of(format, model_type)
    converted = _checked(mask, loaded, out_dir, written, options, convertible)
    document = told(_document(mask, loaded, convertible), healed)
    if confirmation is not None:
        document = with_confirmation(document, confirmation)
    _warn_of_remote_code(loaded)
    total = written.n_bytes(converted, options)
    with whole_folder(out_dir) as folder:
        done = 0
        for n_bytes in written.write(converted, folder, options):
            done += n_bytes
            if progress is not None:
                progress(done, total)
        write_masks(document, folder / "mask.json")
        card = model_card(document, convertible.shape, written, converted.model_type)
        (folder / "README.md").write_text(card, encoding="utf-8")
        places = {} if statistics is None else dict(statistics.places)
        if healed is not None:
            places[PLACE] = healed.place
        write_record(folder, document, loaded, written, options, places)
    return Checkpoint(out_dir, written.name, converted.kv_heads, total, confirmation)


def with_refit(document: Mapping[str, Any], refit: str) -> dict[str, Any]:
    """The mask JSON for the same heads, merged with another refit.

    Its scores are kept only if it already names this refit. If it names another one, the new merge
    is not tuned.

    Args:
        document: the mask JSON as ``read_mask`` returns it.
        refit: ``parallel`` = every layer as if it were the only converted one, as a search scores
            it; ``sequential`` = one layer after the other; ``none`` = no refit.

    Raises:
        UnknownNameError: ``refit`` is another word.
    """
    if refit not in REFITS:
        raise UnknownNameError("refit", refit, REFITS)
    merge = _merge_of(document)
    present = document.get("refit", "parallel") if merge.refit else "none"
    if refit == present:
        return dict(document)
    merge = replace(merge, refit=refit != "none", tune=False)
    changed = without_evidence(document) | {"merge": {"name": merge.name, **merge.parameters}}
    changed.pop("refit", None)
    return changed | ({"refit": refit} if refit == "sequential" else {})


def _warn_of_remote_code(loaded: LoadedModel) -> None:
    if is_remote(loaded.model):
        logger.warning(
            "the code that came with %s does not go along: the checkpoint computes as "
            "transformers' own %s does",
            loaded.name,
            loaded.model.config.model_type,
        )


def check_request(
    mask: Mapping[str, Any] | KVHeads,
    loaded: LoadedModel,
    out_dir: Path,
    format: str,
    options: Options = DEFAULTS,
) -> None:
    """Refuse, before anything is calibrated or merged, what ``convert_checkpoint`` would refuse.

    Raises:
        UnknownNameError, ModelError, MaskError, UserError: as in ``convert_checkpoint``.
    """
    model_type = loaded.model.config.model_type
    # all merges give tensors of the same sizes, and this one needs no calibration
    convertible = ConvertibleModel(loaded.model, family_of(model_type), merge_of("mean"))
    _checked(mask, loaded, out_dir, format_of(format, model_type), options, convertible)


def _checked(
    mask: Mapping[str, Any] | KVHeads,
    loaded: LoadedModel,
    out_dir: Path,
    written: Format,
    options: Options,
    convertible: ConvertibleModel,
) -> Converted:
    """What is to be written, after a check that format, mask, model and place fit each other."""
    check_outtype(written, options.outtype)
    if isinstance(mask, Mapping):
        check_model(mask, loaded.shape, loaded.fingerprint)
    kv_heads: KVHeads = tuple(mask["kv_heads"]) if isinstance(mask, Mapping) else tuple(mask)
    convertible.check(kv_heads)
    converted = Converted(convertible, kv_heads, loaded.tokenizer, loaded.folder)
    check_expressible(written, converted)
    check_output(out_dir, written.n_bytes(converted, options) + _SMALL_FILES_BYTES)
    return converted


def _merge_of(mask: Mapping[str, Any] | KVHeads) -> Merge:
    return merge_of(**mask["merge"]) if isinstance(mask, Mapping) else merge_of("mean")


def _document(
    mask: Mapping[str, Any] | KVHeads, loaded: LoadedModel, convertible: ConvertibleModel
) -> dict[str, Any]:
    """The mask JSON that is written; it keeps evidence that was measured on exactly these weights.

    If a mask does not say in which dtype it was scored, this is not known, and its evidence is left
    out. The description of the calibration texts stays, so that the mask can be converted again.
    """
    merge = {"name": convertible.merge.name, **convertible.merge.parameters}
    digest = convertible.calibration
    dtype = str(loaded.dtype).removeprefix("torch.")
    if isinstance(mask, Mapping):
        described = mask.get("calibration") or {}
        same = _merge_of(mask).digest == convertible.merge.digest
        if same and described.get("digest", "") == digest and _scored_in(mask, dtype):
            return dict(mask)
        calibration = {**described, "digest": digest} if digest else None
        changes = {"dtype": dtype, "merge": merge, "calibration": calibration}
        changes["kv_bytes_per_token"] = _kv_bytes(convertible, tuple(mask["kv_heads"]))
        return without_evidence(mask) | changes
    shape = convertible.shape
    flags = LayerMask(tuple(int(heads < shape.n_kv_heads) for heads in mask))
    return {
        "schema_version": SCHEMA_VERSION,
        "model": {
            "id": loaded.name,
            "fingerprint": loaded.fingerprint,
            "n_layers": shape.n_layers,
            "n_heads": shape.n_heads,
            "n_kv_heads": shape.n_kv_heads,
        },
        "dtype": dtype,
        "merge": merge,
        "calibration": {"digest": digest} if digest else None,
        "mask": list(flags.levels),
        "mqa_layers": list(flags.layers),
        "kv_heads": list(mask),
        "kv_bytes_per_token": _kv_bytes(convertible, mask),
        "versions": {"mqasearch": __version__},
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _kv_bytes(convertible: ConvertibleModel, kv_heads: KVHeads) -> dict[str, int]:
    shape = convertible.shape
    return {
        "original": shape.kv_bytes_per_token(shape.original),
        "converted": shape.kv_bytes_per_token(kv_heads),
    }


def _scored_in(mask: Mapping[str, Any], dtype: str) -> bool:
    """Whether the mask's dtype is this one; if scores of another dtype are lost, log a warning."""
    scored = mask.get("dtype")
    if scored == dtype or not (mask.get("scores") or mask.get("delta")):
        return scored == dtype
    if scored is None:
        logger.warning(
            "the mask does not say in which dtype it was scored, so its scores are left out; "
            "export it from its study again to keep them"
        )
    else:
        logger.warning(
            "the mask was scored in %s and is written in %s, so its scores are left out; "
            "give --dtype %s to keep them",
            scored,
            dtype,
            scored,
        )
    return False
