"""Healing of one mask: computed once, kept in the cache, and resumed if it was interrupted."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from mqasearch.assets import build_once, cache_dir
from mqasearch.conversion import ConvertibleModel, HealedLayers
from mqasearch.errors import AssetError
from mqasearch.families import AttentionWeights
from mqasearch.heal_recipe import Recipe
from mqasearch.healing.memory_needed import need, wants_checkpointing
from mqasearch.healing.steps import Facts, Watch
from mqasearch.healing.text import HealingText, healing_text
from mqasearch.healing.training import Course, Healing
from mqasearch.mask import KVHeads
from mqasearch.merging import Place, threads
from mqasearch.source_code import code_digest

_FILE = "healed.safetensors"
_STATE = "state.safetensors"
_LONGEST = 4096


@dataclass(frozen=True, slots=True, eq=False)
class Healed:
    """A mask's converted layers after healing.

    Attributes:
        layers: healed layers for ``ConvertibleModel``; empty if the mask converts nothing.
        facts: how the healing went; None if there was nothing to heal.
        place: where it was computed.
    """

    layers: HealedLayers
    facts: Facts | None
    place: Place


def heal(
    convertible: ConvertibleModel,
    kv_heads: KVHeads,
    sequences: Sequence[Sequence[int]],
    recipe: Recipe,
    *,
    fingerprint: str | None = None,
    again: Place | None = None,
    watch: Watch | None = None,
) -> Healed:
    """Distil the original into the converted layers of one mask.

    The result is kept in the cache, and so is the state of an interrupted healing: the same call
    resumes from there and gives the same weights. Other processes that ask for the same result
    wait.

    Args:
        convertible: the original, and how its layers are merged; no conversion is applied.
        kv_heads: the mask's KV heads.
        sequences: token ids of calibration texts.
        recipe: all other settings that decide the result.
        fingerprint: fingerprint of the original's weights. None = the cache is neither read nor
            written.
        again: ``Healed.place`` of an earlier call, to be repeated bit for bit, without the cache.
        watch: called after every step.

    Raises:
        UserError: too little text, or too little memory.
        MaskError, ModelError: as in ``ConvertibleModel.merged``.
        AssetError: the cache cannot be written.
    """
    convertible.check(kv_heads)
    original = convertible.shape.n_kv_heads
    converted = {layer: heads for layer, heads in enumerate(kv_heads) if heads < original}
    if not converted:
        return Healed(HealedLayers({}, ""), None, _here(convertible))
    text = text_for(convertible.model, sequences, recipe)
    how = how_healed(sequences, recipe)
    work = _Work(convertible, converted, text, recipe, how, watch)
    if fingerprint is None or again is not None:
        with threads(None if again is None else again.threads):
            return work.run(None)
    key = _key(convertible, kv_heads, sequences, recipe, fingerprint)
    state = cache_dir() / "healing" / key

    def fill(partial: Path) -> None:
        _save(work.run(state), partial / _FILE)

    folder = build_once(cache_dir() / "healed" / key, fill, "healed layers")
    shutil.rmtree(state, ignore_errors=True)
    return _load(folder / _FILE, work)


def _key(
    convertible: ConvertibleModel,
    kv_heads: KVHeads,
    sequences: Sequence[Sequence[int]],
    recipe: Recipe,
    fingerprint: str,
) -> str:
    """Cache key: a digest of everything that decides the healed weights."""
    parts = {
        "model": fingerprint,
        "dtype": str(convertible.model.dtype),
        "device": convertible.model.device.type,
        "merge": convertible.merge_name,
        "calibration": convertible.calibration,
        "kv_heads": [*kv_heads],
        "text": [*map(list, sequences)],
        "recipe": recipe.parameters,
        "code": _code_digest(),
    }
    return _sha256(parts)[:32]


@dataclass(frozen=True, slots=True)
class _Work:
    """One healing, from its start or from the point at which it was interrupted."""

    convertible: ConvertibleModel
    converted: Mapping[int, int]
    text: HealingText
    recipe: Recipe
    how: str
    watch: Watch | None

    def merged(self) -> dict[int, AttentionWeights]:
        return {
            layer: self.convertible.merged(layer, heads) for layer, heads in self.converted.items()
        }

    def run(self, state: Path | None) -> Healed:
        """Heal the mask; ``state`` is the folder of the saved state, None = no state is saved."""
        model, family = self.convertible.model, self.convertible.family
        merged = self.merged()
        needed = need(model, family, merged, self.text)
        healing = Healing(
            model,
            family,
            merged,
            self.text,
            self.recipe,
            checkpointing=wants_checkpointing(needed, model.device),
        )
        if state is not None:
            _go_on(healing, state)
        for _ in healing.run(self.watch):
            if state is not None:
                _keep(healing, state)
        healed = {
            layer: weights.to(dtype=model.dtype) for layer, weights in healing.healed().items()
        }
        layers = HealedLayers(healed, self.how)
        return Healed(layers, healing.facts(), _here(self.convertible))


def how_healed(sequences: Sequence[Sequence[int]], recipe: Recipe) -> str:
    """What decides healed weights besides the mask, its merge and the model; in canonical form."""
    text = _sha256({"text": [*map(list, sequences)]})
    return f"healed({json.dumps(recipe.parameters, sort_keys=True)}, {text[:16]})"


def text_for(
    model: PreTrainedModel, sequences: Sequence[Sequence[int]], recipe: Recipe
) -> HealingText:
    """The batches of a healing.

    Raises:
        UserError: too little text.
    """
    longest = getattr(model.config, "max_position_embeddings", _LONGEST)
    return healing_text(sequences, recipe.batch_tokens, min(longest, _LONGEST))


def _here(convertible: ConvertibleModel) -> Place:
    return Place(convertible.model.device.type, torch.get_num_threads())


def _keep(healing: Healing, folder: Path) -> None:
    """Write the state of a healing atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{_STATE}.{os.getpid()}"
    tensors = {name: tensor.cpu().contiguous() for name, tensor in healing.state().items()}
    save_file(tensors, partial, metadata={"course": json.dumps(asdict(healing.course))})
    partial.replace(folder / _STATE)


def _go_on(healing: Healing, folder: Path) -> None:
    """Resume from a saved state, if there is one that can be read."""
    with suppress(OSError, SafetensorError, ValueError, KeyError, TypeError):
        tensors, metadata = _read(folder / _STATE)
        healing.go_on_from(Course(**json.loads(metadata["course"])), tensors)


def _save(healed: Healed, path: Path) -> None:
    assert healed.facts is not None
    tensors = {
        f"{layer}.{name}": tensor.contiguous()
        for layer, weights in healed.layers.layers.items()
        for name, tensor in weights.tensors().items()
    }
    told = {"facts": asdict(healed.facts), "place": asdict(healed.place)}
    save_file(tensors, path, metadata={name: json.dumps(each) for name, each in told.items()})


def _load(path: Path, work: _Work) -> Healed:
    try:
        tensors, metadata = _read(path)
    except (OSError, SafetensorError) as error:
        raise AssetError(
            f"healed layers in the cache cannot be read ({error}): delete the folder {path.parent}"
        ) from error
    layers = {}
    for layer, weights in work.merged().items():
        found: dict[str, Any] = {name: tensors[f"{layer}.{name}"] for name in weights.tensors()}
        layers[layer] = replace(weights, **found)
    return Healed(
        HealedLayers(layers, work.how),
        Facts(**json.loads(metadata["facts"])),
        Place(**json.loads(metadata["place"])),
    )


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, file.metadata() or {}


@cache
def _code_digest() -> str:
    parts = ("healing", "heal_recipe.py", "conversion", "merging", "families", "models/resuming.py")
    return code_digest(parts, ("torch", "transformers"))


def _sha256(parts: Mapping[str, Any]) -> str:
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
