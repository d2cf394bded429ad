"""Makes a scorer from a spec: the model is loaded and calibrated once, each layer merged once."""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch

from mqasearch.conversion import ConvertibleModel, calibrate, refit_sequential
from mqasearch.errors import MaskError, ModelError
from mqasearch.families import family_of
from mqasearch.heal_recipe import most_text_tokens, recipe_of
from mqasearch.mask import ModelShape
from mqasearch.merging import Merge, Place, Statistics, merge_of
from mqasearch.models import LoadedModel, check_name, load_model, load_shape
from mqasearch.score import Split, TaskSpec
from mqasearch.scoring.fake import FakeScorer
from mqasearch.scoring.healers import FakeHealer, Healer, ModelHealer
from mqasearch.scoring.scorer import Scorer
from mqasearch.scoring.shared_prefix import SharedPrefixScorer
from mqasearch.spec import StudySpec
from mqasearch.tasks import TaskLibrary, calibration_tokens

logger = logging.getLogger(__name__)

_FAKE = re.compile(r"fake(?::(?P<layers>[1-9][0-9]{0,3})(?::(?P<seconds>[0-9]+(\.[0-9]+)?))?)?")


@dataclass(frozen=True)
class Scoring:
    """A scorer and what its scores depend on.

    Attributes:
        scorer: the scorer, which lives as long as the worker.
        fingerprint: fingerprint of the original weights.
        dtype: torch's name of the dtype without the prefix.
        merge: the merge's name and parameters in canonical form.
        calibration: digest of the calibration statistics; empty if the merge needs none.
        device: the device that the scorer computes on.
        healer: heals finalists; None if the study does not heal.
    """

    scorer: Scorer
    fingerprint: str
    dtype: str
    merge: str
    calibration: str
    device: str
    healer: Healer | None = None


def check_model_name(name: str) -> None:
    """Check a model's name as far as possible without loading the model.

    ``fake``, ``fake:LAYERS`` or ``fake:LAYERS:SECONDS`` is a scorer without a model, for trying a
    database, a cluster or a selector.

    Raises:
        ModelError: there is no such model.
    """
    if name.startswith("fake:") and not _FAKE.fullmatch(name):
        raise ModelError(f"model {name!r}: write fake:LAYERS or fake:LAYERS:SECONDS, as in fake:12")
    if not _FAKE.fullmatch(name):
        check_name(name)


def model_shape(spec: StudySpec) -> ModelShape:
    """Shape of the spec's model, read from its config alone.

    Raises:
        ModelError: there is no such model, or its type cannot be converted.
    """
    if (fake := _fake(spec.model.name)) is not None:
        return fake.shape
    entry = spec.model
    model_type, shape = load_shape(
        entry.name,
        dtype=entry.dtype,
        revision=entry.revision,
        trust_remote_code=entry.trust_remote_code,
    )
    family_of(model_type)
    return shape


def search_split(spec: StudySpec) -> Split:
    """Which documents the search of a study scores.

    ``documents.search: full`` means every document. If the merge reads the calibration split, that
    split is left out, because a refit has seen the right answers of its documents.
    """
    if spec.documents.search != "full":
        return "search"
    reads = merge_of(spec.merge.name, **spec.merge.parameters).reads_calibration
    return "uncalibrated" if reads else "full"


def open_scoring(spec: StudySpec, device: str = "auto") -> Scoring:
    """Load the model, calibrate it if the merge reads a calibration, and make its scorer.

    Raises:
        ModelError: there is no such model or device, or the model cannot be converted.
        UserError: there is too little calibration text.
        AssetError: offline data cannot be fetched.
    """
    if (fake := _fake(spec.model.name)) is not None:
        fake_healer = None if spec.heal is None else FakeHealer(fake, recipe_of(spec.heal.steps))
        return Scoring(fake, fake.model, "float32", spec.merge.name, "", "none", fake_healer)
    entry = spec.model
    loaded = load_model(
        entry.name,
        device=device,
        dtype=entry.dtype,
        revision=entry.revision,
        trust_remote_code=entry.trust_remote_code,
    )
    family = family_of(loaded.model.config.model_type)
    merge = merge_of(spec.merge.name, **spec.merge.parameters)
    library = TaskLibrary()
    statistics = None
    if merge.reads_calibration:
        if search_split(spec) == "uncalibrated":
            logger.info(
                "documents.search: full leaves out the calibration documents, a fifth of all: "
                "merge %s is fitted to their right answers",
                merge.name,
            )
        text = calibration_text(spec, spec.documents.calibration_tokens)
        sequences = _sequences(loaded, text, library)
        statistics = _calibrated(loaded, merge, sequences, spec.kv_heads)
    healer = None
    if spec.heal is not None:
        recipe = recipe_of(spec.heal.steps)
        text = calibration_text(spec, spec.heal.tokens or most_text_tokens(recipe))
        sequences = _sequences(loaded, text, library)
        healer = ModelHealer(loaded, merge, statistics, sequences, recipe, library)
    convertible = ConvertibleModel(loaded.model, family, merge, statistics)
    scorer = SharedPrefixScorer(
        convertible, loaded.tokenizer, loaded.fingerprint, loaded.dtype, library=library
    )
    return Scoring(
        scorer=scorer,
        fingerprint=loaded.fingerprint,
        dtype=scorer.dtype,
        merge=convertible.merge_name,
        calibration=convertible.calibration,
        device=str(loaded.device),
        healer=healer,
    )


@dataclass(frozen=True)
class CalibrationText:
    """Which texts a model is calibrated on; equal values give equal tokens.

    Attributes:
        tasks: the benchmarks, with their numbers of examples in the prompt.
        n_tokens: the most tokens.
        seed: the seed of the documents' order.
    """

    tasks: Sequence[TaskSpec]
    n_tokens: int
    seed: int

    @classmethod
    def of(cls, described: Mapping[str, Any]) -> Self:
        """From a mask JSON's description: ``{tasks: [{name, num_fewshot}], n_tokens, seed}``."""
        tasks = tuple(
            TaskSpec(task["name"], num_fewshot=task["num_fewshot"]) for task in described["tasks"]
        )
        return cls(tasks, described["n_tokens"], described["seed"])


def calibration_text(spec: StudySpec, n_tokens: int) -> CalibrationText:
    """The calibration text of a study's tasks, with at most ``n_tokens`` tokens."""
    tasks = tuple(TaskSpec(task.name, num_fewshot=task.num_fewshot) for task in spec.tasks)
    return CalibrationText(tasks, n_tokens, spec.documents.seed)


def mask_text(loaded: LoadedModel, text: CalibrationText) -> list[list[int]]:
    """Token ids of each document.

    Raises:
        UserError, AssetError: there is no such task, or its data cannot be fetched.
    """
    return calibration_tokens(
        loaded.tokenizer, text.tasks, text.n_tokens, seed=text.seed, library=TaskLibrary()
    )


def calibrate_for_mask(
    loaded: LoadedModel,
    document: Mapping[str, Any],
    *,
    again: Mapping[str, Place] | None = None,
) -> Statistics | None:
    """The calibration that a mask JSON names, computed again or taken from the cache.

    Args:
        loaded: the mask's model, unconverted.
        document: the mask's JSON, as ``read_mask`` returns it.
        again: as in ``calibrate``.

    Returns:
        The statistics; None if the mask's merge reads no calibration, or if the mask describes none
        and the merge does not need one.

    Raises:
        MaskError: the merge needs a calibration that the mask does not describe.
        ModelError, UserError, AssetError: as in ``open_scoring``.
    """
    merge = merge_of(**document["merge"])
    described = document.get("calibration") or {}
    if not merge.reads_calibration or (not described and not merge.needs_calibration):
        return None
    if missing := [key for key in ("tasks", "n_tokens", "seed") if key not in described]:
        raise MaskError(
            f"merge {merge.name!r} needs calibration, and the mask's calibration has no "
            f"{missing[0]!r}; export the mask from its study again, or give calibration "
            "{digest, tasks, n_tokens, seed}"
        )
    sequences = _sequences(loaded, CalibrationText.of(described), TaskLibrary())
    if merge.refit and document.get("refit") == "sequential":
        statistics = _fitted_in_turn(loaded, merge, sequences, document["kv_heads"], again)
    else:
        targets = set(document["kv_heads"]) - {loaded.shape.n_kv_heads}
        statistics = _calibrated(loaded, merge, sequences, targets, again)
    if statistics.digest != described.get("digest"):
        logger.warning(
            "the calibration is not the one that the mask was scored with: model, tokenizer or "
            "benchmark data have changed since"
        )
    return statistics


def _sequences(loaded: LoadedModel, text: CalibrationText, library: TaskLibrary) -> list[list[int]]:
    sequences = calibration_tokens(
        loaded.tokenizer, text.tasks, text.n_tokens, seed=text.seed, library=library
    )
    logger.info("calibrating on %s tokens", f"{sum(map(len, sequences)):,}")
    return sequences


def _calibrated(
    loaded: LoadedModel,
    merge: Merge,
    sequences: Sequence[Sequence[int]],
    targets: Iterable[int],
    again: Mapping[str, Place] | None = None,
) -> Statistics:
    return calibrate(
        loaded.model,
        family_of(loaded.model.config.model_type),
        sequences,
        merge,
        targets=targets,
        fingerprint=loaded.fingerprint,
        again=again,
    )


def _fitted_in_turn(
    loaded: LoadedModel,
    merge: Merge,
    sequences: Sequence[Sequence[int]],
    kv_heads: Sequence[int],
    again: Mapping[str, Place] | None,
) -> Statistics:
    """The calibration with the layers that the sequential refit fits, for one mask only."""
    model, family = loaded.model, family_of(loaded.model.config.model_type)
    without: Merge = replace(merge, refit=False, tune=False)
    statistics = _calibrated(loaded, without, sequences, (), again)
    convertible = ConvertibleModel(model, family, without, statistics)
    merged = {
        layer: convertible.merged(layer, heads)
        for layer, heads in enumerate(kv_heads)
        if heads < convertible.shape.n_kv_heads
    }
    logger.info("refitting %d layers one after the other", len(merged))
    layers = list(statistics.layers)
    for layer, weights in refit_sequential(model, family, merged, sequences).items():
        layers[layer] = replace(layers[layer], fitted={kv_heads[layer]: weights.tensors()})
    here = Place(model.device.type, torch.get_num_threads())  # these are never in the cache
    places = {**statistics.places, "fitted in turn": here}
    return Statistics(tuple(layers), statistics.digest, places)


def _fake(name: str) -> FakeScorer | None:
    match = _FAKE.fullmatch(name)
    if match is None:
        return None
    return FakeScorer(int(match["layers"] or 12), seconds=float(match["seconds"] or 0))
