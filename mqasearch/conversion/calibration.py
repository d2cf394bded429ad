"""Calibration: what a merge needs to know of the original model on real text, computed once.

Results are cached on disk under a key of everything they depend on. If several workers ask at once,
one computes and the others wait.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from mqasearch.assets import build_once, cache_dir
from mqasearch.conversion.convertible import ConvertibleModel
from mqasearch.conversion.normal_equations import not_finite
from mqasearch.conversion.refit import (
    Progress,
    calibration_batches,
    check_tokens,
    refit_layers,
    run_base,
)
from mqasearch.conversion.tuning import tune_layers
from mqasearch.errors import AssetError, UserError
from mqasearch.families import AttentionWeights, Family
from mqasearch.merging import LayerStatistics, Merge, Place, Statistics, threads
from mqasearch.source_code import code_digest
from mqasearch.time_left import TimeLeft

logger = logging.getLogger(__name__)

METHOD = 1
"""Part of every digest; raised if the same text gives other statistics than before."""

_FILE = "calibration.safetensors"


@dataclass(frozen=True, slots=True)
class _Cache:
    """What all cached results of one calibration have in common."""

    digest: str
    dtype: str
    device: str
    is_on: bool
    again: Mapping[str, Place]

    def get(
        self,
        part: str,
        key: Mapping[str, object],
        build: Callable[[], Mapping[str, Tensor]],
        what: str,
    ) -> tuple[Mapping[str, Tensor], Place]:
        """The tensors cached under this key, and the place where they were computed.

        If the cache does not hold them, they are computed, with as many threads as the part was
        computed with the first time, if that is known.
        """
        known = self.again.get(part)

        def built() -> tuple[Mapping[str, Tensor], Place]:
            with threads(None if known is None else known.threads):
                return build(), Place(self.device, torch.get_num_threads())

        if not self.is_on:
            return built()
        whole = {"digest": self.digest, "dtype": self.dtype, "code": _code_digest(), **key}
        folder = cache_dir() / "calibration" / _sha256(whole)[:32]

        def fill(partial: Path) -> None:
            tensors, place = built()
            contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
            metadata = {"device": place.device, "threads": str(place.threads)}
            save_file(contiguous, partial / _FILE, metadata=metadata)

        return _load(build_once(folder, fill, what) / _FILE)


def calibrate(
    model: PreTrainedModel,
    family: Family,
    sequences: Sequence[Sequence[int]],
    merge: Merge,
    *,
    targets: Iterable[int] = (1,),
    fingerprint: str | None = None,
    again: Mapping[str, Place] | None = None,
) -> Statistics:
    """All that ``merge`` reads, from one pass of the original model, and its fits to each target.

    Memory holds one [D, D] matrix per layer, and during a refit one [n_q · d, n_q · d + D] matrix
    per layer as well. ``tune_layers`` says what the tuning holds.

    Args:
        model: the original, with nothing converted; it is unchanged when this returns.
        family: the model's family.
        sequences: token ids of calibration texts.
        merge: the merge; it decides which fits there are.
        targets: numbers of KV heads to fit layers to.
        fingerprint: the weights' fingerprint. None = the cache is neither read nor written.
        again: ``Statistics.places`` of an earlier call, to be repeated bit for bit: each part is
            computed with the same number of threads, without the cache.

    Raises:
        UserError: no text, or too little for a fit.
        ModelError: NaN or infinity in a layer.
        AssetError: the cache cannot be written.
    """
    if not any(sequences):
        raise UserError("there is no calibration text: set documents.calibration_tokens above 0")
    weights = family.read(family.attention(family.blocks(model)[0]))
    if merge.is_fitted:
        check_tokens(sequences, weights, "refit" if merge.refit else "tune")
    digest = _sha256({"method": METHOD, "model": fingerprint, "text": [*map(list, sequences)]})
    is_on = fingerprint is not None and again is None
    kept = _Cache(digest, str(weights.q.dtype), model.device.type, is_on, again or {})
    tensors, place = kept.get(
        "moments",
        {"kind": "moments"},
        lambda: _packed_moments(moments(model, family, sequences, _told("moments"))),
        "calibration statistics",
    )
    statistics = Statistics(_unpacked_moments(tensors), digest, {"moments": place})
    if not merge.is_fitted:
        return statistics
    layers, places = list(statistics.layers), dict(statistics.places)
    for target in sorted(set(targets)):
        fits = _Fits(model, family, sequences, merge, statistics, target)
        fitted, places_of_target = fits.cached(kept)
        places |= places_of_target
        layers = [
            replace(layer, fitted={**layer.fitted, target: _of_layer(fitted, index)})
            for index, layer in enumerate(layers)
        ]
    return Statistics(tuple(layers), digest, places)


def moments(
    model: PreTrainedModel,
    family: Family,
    sequences: Sequence[Sequence[int]],
    progress: Progress | None = None,
) -> list[LayerStatistics]:
    """Second moments of every attention layer's input, in one pass.

    Args:
        model, family, sequences: as in ``calibrate``.
        progress: called with (tokens done, tokens in all).

    Raises:
        ModelError: NaN or infinity in a layer.
    """
    attentions = [family.attention(block) for block in family.blocks(model)]
    sums = [_Moments() for _ in attentions]
    with ExitStack() as stack:
        for attention, each in zip(attentions, sums, strict=True):
            hook = family.input_projection(attention).register_forward_pre_hook(each.hook)
            stack.callback(hook.remove)
        for batch in calibration_batches(model, sequences, progress):
            for each in sums:
                each.real = batch.real
            run_base(model, batch.tokens)
    return [each.statistics(f"layer {layer}") for layer, each in enumerate(sums)]


class _Moments:
    """Sums of x̃x̃ᵀ over one layer's inputs: in float32 over a batch, in float64 over batches."""

    def __init__(self) -> None:
        self.real: Tensor | None = None
        self._sums: list[Tensor | float] = [0.0, 0.0]
        self._counts = [0, 0]

    def hook(self, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        """Add the input of a projection, [rows, length, D], before the projection runs."""
        x = args[0].detach()
        assert self.real is not None
        first = torch.zeros_like(self.real)
        first[:, 0] = True
        for index, chosen in enumerate((self.real & ~first, self.real & first)):
            tokens = x[chosen].float()
            tokens = torch.cat([tokens, tokens.new_ones(len(tokens), 1)], dim=1)
            self._sums[index] = self._sums[index] + (tokens.T @ tokens).to("cpu", torch.float64)
            self._counts[index] += len(tokens)

    def statistics(self, where: str) -> LayerStatistics:
        """The means; if every text is a single token, those of the first tokens alone."""
        later, first = self._sums
        assert isinstance(later, Tensor)
        assert isinstance(first, Tensor)
        if not bool(torch.isfinite(later + first).all()):
            raise not_finite(where)
        n_later, n_first = self._counts
        if n_later == 0:
            return LayerStatistics(n_first, first / n_first)
        return LayerStatistics(n_later, later / n_later, n_first, first / n_first)


_Fit = Callable[..., list[AttentionWeights]]


@dataclass(frozen=True, slots=True)
class _Fits:
    """The fits of one merge to one number of KV heads; each starts from the result of the last."""

    model: PreTrainedModel
    family: Family
    sequences: Sequence[Sequence[int]]
    merge: Merge
    statistics: Statistics
    target: int

    def cached(self, kept: _Cache) -> tuple[Mapping[str, Tensor], dict[str, Place]]:
        """The fitted layers, and the places of all fits."""
        fits: list[tuple[str, Merge, _Fit]] = []
        if self.merge.refit:
            fits.append(("fitted", replace(self.merge, tune=False), refit_layers))
        if self.merge.tune:
            fits.append(("tuned", self.merge, tune_layers))
        fitted: Mapping[str, Tensor] = {}
        places = {}
        for kind, merge, fit in fits:
            part = f"{kind} to {self.target}"
            fitted, places[part] = kept.get(
                part,
                {"kind": kind, "merge": merge.digest, "target": self.target},
                partial(self._fit, kind, fit, fitted),
                f"layers {kind} to {self.target} KV heads",
            )
        return fitted, places

    def _fit(self, kind: str, fit: _Fit, before: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        without: Merge = replace(self.merge, refit=False, tune=False)
        convertible = ConvertibleModel(self.model, self.family, without, self.statistics)
        layers = range(convertible.shape.n_layers)
        merged = [convertible.merged(layer, self.target) for layer in layers]
        if before:
            merged = [_with(weights, before, layer) for layer, weights in enumerate(merged)]
        told = _told(f"layers {kind} to {self.target} KV heads")
        fitted = fit(self.model, self.family, merged, self.sequences, progress=told)
        return _packed(fitted, merged[0].q.dtype)


def _told(part: str) -> TimeLeft:
    return TimeLeft(logger, f"calibrating, {part}")


def _with(weights: AttentionWeights, packed: Mapping[str, Tensor], layer: int) -> AttentionWeights:
    tensors: dict[str, Any] = _of_layer(packed, layer)
    return replace(weights, **tensors)


def _packed(layers: Sequence[AttentionWeights], dtype: torch.dtype) -> dict[str, Tensor]:
    return {
        f"{layer}.{name}": tensor.to(device="cpu", dtype=dtype)
        for layer, weights in enumerate(layers)
        for name, tensor in weights.tensors().items()
    }


def _packed_moments(layers: Sequence[LayerStatistics]) -> dict[str, Tensor]:
    packed = {}
    for index, layer in enumerate(layers):
        packed[f"{index}.counts"] = torch.tensor([layer.n_tokens, layer.n_first])
        packed[f"{index}.x_moment"] = layer.x_moment
        if layer.first_moment is not None:
            packed[f"{index}.first_moment"] = layer.first_moment
    return packed


def _unpacked_moments(tensors: Mapping[str, Tensor]) -> tuple[LayerStatistics, ...]:
    layers: list[LayerStatistics] = []
    while rows := _of_layer(tensors, len(layers)):
        n_tokens, n_first = rows["counts"].tolist()
        layers.append(
            LayerStatistics(n_tokens, rows["x_moment"], n_first, rows.get("first_moment"))
        )
    return tuple(layers)


def _of_layer(tensors: Mapping[str, Tensor], layer: int) -> dict[str, Tensor]:
    prefix = f"{layer}."
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def _load(path: Path) -> tuple[dict[str, Tensor], Place]:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            place = file.metadata()
        return tensors, Place(place["device"], int(place["threads"]))
    except (OSError, SafetensorError) as error:
        raise AssetError(
            f"cached calibration cannot be read ({error}): delete the folder {path.parent}"
        ) from error


@cache
def _code_digest() -> str:
    """Digest of the code that decides what is cached, so that a change of it changes the key."""
    parts = ("conversion", "merging", "families", "models/resuming.py")
    return code_digest(parts, ("torch", "transformers"))


def _sha256(parts: Mapping[str, Any]) -> str:
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
