"""The mask JSON of a healed mask: how it asks for a healing, and how it reports the result."""

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from mqasearch.conversion import ConvertibleModel
from mqasearch.errors import MaskError
from mqasearch.export import without_evidence
from mqasearch.families import family_of
from mqasearch.heal_recipe import Recipe, most_text_tokens
from mqasearch.healing import Healed, Watch, heal
from mqasearch.merging import Place, Statistics, merge_of
from mqasearch.models import LoadedModel
from mqasearch.scoring import CalibrationText, mask_text

logger = logging.getLogger(__name__)

PLACE = "healed"
"""Key of the healing's place among the places of a calibration."""


def with_heal(
    document: Mapping[str, Any], recipe: Recipe | None, n_tokens: int | None = None
) -> dict[str, Any]:
    """The mask JSON that asks for this healing, or for none.

    Its scores are kept only if it asked for the same before.

    Args:
        document: the mask JSON as ``read_mask`` returns it.
        recipe: the healing's recipe; None = no healing.
        n_tokens: tokens of text, without repetitions; None = as many as the steps see, up to
            ``MOST_TEXT_TOKENS``.

    Raises:
        MaskError: the mask names no task whose texts could be used.
    """
    if recipe is None:
        if "healed" not in document:
            return dict(document)
        return {k: v for k, v in without_evidence(document).items() if k != "healed"}
    tasks, seed = tasks_of(document, "whose calibration documents it could be healed on")
    n_tokens = n_tokens or most_text_tokens(recipe)
    wanted = {
        "recipe": recipe.parameters,
        "text": {"tasks": tasks, "n_tokens": n_tokens, "seed": seed},
    }
    present = document.get("healed") or {}
    if {key: present.get(key) for key in wanted} == wanted:
        return dict(document)
    return without_evidence(document) | {"healed": wanted}


def tasks_of(document: Mapping[str, Any], why: str) -> tuple[list[dict[str, Any]], int]:
    """The mask's tasks, as ``{name, num_fewshot}``, and the seed of their documents' order.

    Raises:
        MaskError: the mask names no task; ``why`` says what tasks are needed for.
    """
    calibration = document.get("calibration") or {}
    for described in (calibration, (document.get("healed") or {}).get("text") or {}):
        if described.get("tasks"):
            return described["tasks"], described.get("seed", 0)
    scored = document.get("scores") or document.get("search_scores") or {}
    if not scored:
        raise MaskError(
            f"the mask names no task {why}: export it from its study, or give it calibration "
            "{digest, tasks, n_tokens, seed}"
        )
    return [{"name": task, "num_fewshot": 0} for task in scored], calibration.get("seed", 0)


def heal_for_mask(
    loaded: LoadedModel,
    document: Mapping[str, Any],
    statistics: Statistics | None,
    *,
    again: Mapping[str, Place] | None = None,
    watch: Watch | None = None,
) -> Healed | None:
    """The healing that a mask JSON asks for, computed or taken from the cache.

    Args:
        loaded: the mask's model, with nothing converted.
        document: the mask JSON as ``read_mask`` or ``with_heal`` gives it.
        statistics: the mask's calibration, if its merge reads any.
        again: places of an earlier computation, to be repeated bit for bit.
        watch: called after every step.

    Returns:
        None if the mask asks for no healing.

    Raises:
        MaskError, ModelError: the mask does not fit the model.
        UserError: too little text or memory.
        AssetError: offline data cannot be fetched, or the cache cannot be read or written.
    """
    wanted = document.get("healed")
    if wanted is None:
        return None
    model = loaded.model
    family = family_of(model.config.model_type)
    convertible = ConvertibleModel(model, family, merge_of(**document["merge"]), statistics)
    sequences = mask_text(loaded, CalibrationText.of(wanted["text"]))
    logger.info(
        "healing %d layers on %s tokens of calibration text, at most %d steps",
        len(document["mqa_layers"]),
        f"{sum(map(len, sequences)):,}",
        wanted["recipe"]["n_steps"],
    )
    return heal(
        convertible,
        tuple(document["kv_heads"]),
        sequences,
        Recipe(**wanted["recipe"]),
        fingerprint=loaded.fingerprint,
        again=None if again is None else again.get(PLACE),
        watch=watch,
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def told(document: Mapping[str, Any], healed: Healed | None) -> dict[str, Any]:
    """The mask JSON with the facts of its healing.

    Raises:
        ValueError: there are healed layers, but the mask JSON asks for none.
    """
    if healed is None or healed.facts is None:
        return dict(document)
    if "healed" not in document:
        raise ValueError("healed layers for a mask JSON that does not ask for them")
    scored_on = document["healed"].get("device", healed.place.device)
    if scored_on != healed.place.device:
        logger.warning(
            "the mask was healed on %s and now on %s, to other weights: its scores are left out",
            scored_on,
            healed.place.device,
        )
        document = without_evidence(document)
    facts = asdict(healed.facts)
    del facts["seconds"]  # the same healing has the same mask JSON, whenever it runs
    kl = {name: _finite(facts.pop(name)) for name in ("before", "after")}
    told: dict[str, Any] = {**document["healed"], **facts, "kl": kl, "device": healed.place.device}
    return {**document, "healed": told}
