"""From a mask and a loaded model to a checkpoint folder that other software loads."""

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from mqasearch import __version__
from mqasearch.conversion import ConvertibleModel, Merge, Statistics, merge_of
from mqasearch.conversion.pooling import select_kv_heads
from mqasearch.errors import UnknownNameError
from mqasearch.families import AttentionWeights, family_of
from mqasearch.mask import KVHeads, LayerMask, ModelShape
from mqasearch.models import LoadedModel, is_remote
from mqasearch.serving.card import model_card
from mqasearch.serving.folder import check_output, whole_folder
from mqasearch.serving.formats import Format, format_of
from mqasearch.serving.mask_json import SCHEMA_VERSION, check_model, without_evidence, write_masks
from mqasearch.serving.safetensors_stream import Entry, write_sharded

logger = logging.getLogger(__name__)

REFITS = ("parallel", "sequential", "none")
"""How a converted layer's output projection is fitted, see ``with_refit``."""
MAX_SHARD_BYTES = 4 * 10**9
_SMALL_FILES_BYTES = 64 * 10**6  # tokenizer, code, card: more than any of them takes


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What was written.

    Attributes:
        folder: where.
        format: in which format.
        kv_heads: per layer, layer 0 first.
        weight_bytes: of all tensors.
    """

    folder: Path
    format: str
    kv_heads: KVHeads
    weight_bytes: int


def convert_checkpoint(
    mask: Mapping[str, Any] | KVHeads,
    loaded: LoadedModel,
    out_dir: Path,
    *,
    format: str = "hf",
    merge: Merge | None = None,
    statistics: Statistics | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> Checkpoint:
    """Write the converted model, its tokenizer, its mask JSON and a model card.

    The live model is not changed. Layers are merged and written one after the other, so memory
    holds the model, one merged layer and nothing else. ``out_dir`` appears when everything is in
    it and on the disk.

    Args:
        mask: a mask JSON as ``read_mask`` returns it, or KV heads per layer.
        loaded: the original model, in the dtype that is to be written.
        out_dir: must not exist, or be empty.
        format: a name in ``formats.FORMATS``.
        merge: None = the mask JSON's; ``mean`` for bare KV heads.
        statistics: calibration of ``loaded``, for merges that read it; for a mask JSON as
            ``calibrate_for_mask`` gives it.
        max_shard_bytes: size of the largest weights file.
        progress: called with (bytes written, bytes in all) after every tensor.

    Raises:
        UnknownNameError: an unknown model type, format or merge.
        ModelError: a format that cannot express the model; a model that cannot be converted.
        MaskError: a mask of another model, or one that does not fit.
        UserError: no room on the disk, or a folder that is in use or cannot be written.
    """
    model = loaded.model
    family = family_of(model.config.model_type)
    convertible = ConvertibleModel(model, family, merge or _merge_of(mask), statistics)
    writing = _checked(mask, loaded, out_dir, format, convertible)
    written, kv_heads = writing.format, writing.kv_heads
    document = _document(mask, loaded, convertible)
    _warn_of_remote_code(loaded)
    entries = writing.entries()
    total = sum(entry.n_bytes for entry in entries)
    with whole_folder(out_dir) as folder:
        done = 0
        for entry in write_sharded(folder, entries, writing.tensors(), max_shard_bytes):
            done += entry.n_bytes
            if progress is not None:
                progress(done, total)
        loaded.tokenizer.save_pretrained(folder)
        write_masks(document, folder / "mask.json")
        for name, text in _texts(written, model, convertible.shape, document).items():
            (folder / name).write_text(text, encoding="utf-8")
    return Checkpoint(out_dir, written.name, kv_heads, total)


def with_refit(document: Mapping[str, Any], refit: str) -> dict[str, Any]:
    """The mask JSON for the same heads, merged with another refit.

    Its scores stay only where the refit is the one that it names already.

    Args:
        document: as ``read_mask`` returns it.
        refit: ``parallel``, every layer as if it were the only converted one, as a search scores
            it; ``sequential``, one after the other; ``none``.

    Raises:
        UnknownNameError: another word.
    """
    if refit not in REFITS:
        raise UnknownNameError("refit", refit, REFITS)
    merge = _merge_of(document)
    present = document.get("refit", "parallel") if merge.refit else "none"
    if refit == present:
        return dict(document)
    merge = replace(merge, refit=refit != "none")
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
    mask: Mapping[str, Any] | KVHeads, loaded: LoadedModel, out_dir: Path, format: str
) -> None:
    """Refuse, before anything is calibrated or merged, what ``convert_checkpoint`` would refuse.

    Raises:
        UnknownNameError, ModelError, MaskError, UserError: as ``convert_checkpoint``.
    """
    family = family_of(loaded.model.config.model_type)
    # the tensors' sizes are the same whatever the merge, and this one needs no calibration
    convertible = ConvertibleModel(loaded.model, family, merge_of("mean"))
    _checked(mask, loaded, out_dir, format, convertible)


def _checked(
    mask: Mapping[str, Any] | KVHeads,
    loaded: LoadedModel,
    out_dir: Path,
    format: str,
    convertible: ConvertibleModel,
) -> "_Writing":
    written = format_of(format, loaded.model.config.model_type)
    if isinstance(mask, Mapping):
        check_model(mask, loaded.shape, loaded.fingerprint)
    kv_heads: KVHeads = tuple(mask["kv_heads"]) if isinstance(mask, Mapping) else tuple(mask)
    convertible.check(kv_heads)
    writing = _Writing(convertible, written, kv_heads)
    total = sum(entry.n_bytes for entry in writing.entries())
    check_output(out_dir, total + _SMALL_FILES_BYTES)
    return writing


class _Writing:
    """The tensors of the checkpoint, announced first, then one after the other."""

    def __init__(self, convertible: ConvertibleModel, written: Format, kv_heads: KVHeads) -> None:
        self.format = written
        self.kv_heads = kv_heads
        self._convertible = convertible
        self._places = _attention_places(convertible)

    def entries(self) -> list[Entry]:
        """Name, dtype and shape of every tensor; no layer is merged for it."""
        return [
            Entry(name, tensor.dtype, tuple(tensor.shape))
            for name, tensor in self._walk(self._announced)
        ]

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor, in the order of ``entries``."""
        return (tensor for _, tensor in self._walk(self._merged))

    def _walk(self, weights_of: Callable[[int], AttentionWeights]) -> Iterator[tuple[str, Tensor]]:
        """The model's tensors by name, those of attention layers replaced."""
        held, packed = -1, dict[str, Tensor]()
        for name, tensor in _unshared(self._convertible.model):
            if name not in self._places:
                yield name, tensor
                continue
            layer, within = self._places[name]
            if layer != held:  # a state dict goes layer by layer
                held, packed = layer, self._pack(weights_of(layer))
            yield name, packed[within]

    def _pack(self, weights: AttentionWeights) -> dict[str, Tensor]:
        n_kv_heads = self._convertible.shape.n_kv_heads
        return self.format.pack(self._convertible.family, weights, n_kv_heads)

    def _merged(self, layer: int) -> AttentionWeights:
        return self._convertible.merged(layer, self.kv_heads[layer])

    def _announced(self, layer: int) -> AttentionWeights:
        weights = self._convertible.original(layer).to(device="meta")
        return select_kv_heads(weights, range(self.kv_heads[layer]))


def _unshared(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """The state dict without second names of tied tensors."""
    seen = set[int]()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor


def _attention_places(convertible: ConvertibleModel) -> dict[str, tuple[int, str]]:
    """Name in the state dict → (layer, name within the attention)."""
    model, family = convertible.model, convertible.family
    names = {id(module): name for name, module in model.named_modules()}
    places = {}
    for layer, block in enumerate(family.blocks(model)):
        attention = family.attention(block)
        for within in family.parameters(attention):
            places[f"{names[id(attention)]}.{within}"] = (layer, within)
    return places


def _merge_of(mask: Mapping[str, Any] | KVHeads) -> Merge:
    return merge_of(**mask["merge"]) if isinstance(mask, Mapping) else merge_of("mean")


def _document(
    mask: Mapping[str, Any] | KVHeads, loaded: LoadedModel, convertible: ConvertibleModel
) -> dict[str, Any]:
    """The mask JSON that goes along; evidence only if it was measured on these very weights.

    Of a mask that does not say in which dtype it was scored that is not known. Which texts to
    calibrate on stays in it, so that it can be converted again.
    """
    merge = {"name": convertible.merge.name, **convertible.merge.parameters}
    digest = convertible.calibration
    dtype = str(loaded.dtype).removeprefix("torch.")
    if isinstance(mask, Mapping):
        described = mask.get("calibration") or {}
        same = _merge_of(mask).digest == convertible.merge_name
        if same and described.get("digest", "") == digest and _scored_in(mask, dtype):
            return dict(mask)
        calibration = {**described, "digest": digest} if digest else None
        changes = {"dtype": dtype, "merge": merge, "calibration": calibration}
        changes["kv_bytes_per_token"] = _kv_bytes(convertible, tuple(mask["kv_heads"]))
        return without_evidence(mask) | changes
    shape = convertible.shape
    flags = LayerMask(tuple(heads < shape.n_kv_heads for heads in mask))
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
        "mask": [int(flag) for flag in flags],
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
    """Whether the mask's scores, if it has any, are of this dtype; a line in the log if not."""
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


def _texts(
    written: Format, model: PreTrainedModel, shape: ModelShape, document: Mapping[str, Any]
) -> dict[str, str]:
    """The small files by name; config.json, without which nothing loads, comes last."""
    config = written.config(model, tuple(document["kv_heads"]))
    texts = {"README.md": model_card(document, shape, written)}
    texts |= written.code(model.config.model_type)
    if model.generation_config is not None:
        texts["generation_config.json"] = model.generation_config.to_json_string()
    return texts | {"config.json": json.dumps(config, indent=2, sort_keys=True) + "\n"}
