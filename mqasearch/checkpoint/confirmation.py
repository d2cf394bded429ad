"""Confirm a conversion: original, mask and healed mask on documents that no search has seen."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mqasearch.checkpoint.healed_mask import tasks_of
from mqasearch.conversion import ConvertibleModel, HealedLayers
from mqasearch.errors import MaskError
from mqasearch.evaluation import against
from mqasearch.export import evidence
from mqasearch.families import family_of
from mqasearch.merging import Statistics, merge_of
from mqasearch.models import LoadedModel
from mqasearch.score import Documents, Score, TaskSpec
from mqasearch.scoring import SharedPrefixScorer
from mqasearch.tasks import TaskLibrary

Rows = Mapping[str, Mapping[str, Any]]
"""Task → metric → row, as ``evaluation.against`` gives it."""


@dataclass(frozen=True, slots=True)
class Confirmation:
    """Held-out results, all on the same documents.

    Attributes:
        converted: the written model against the original.
        unhealed: the mask before healing against the original; None if nothing was healed.
        gained: the written model against the mask before healing: ``original`` in these rows is the
            unhealed mask's value. None if nothing was healed.
    """

    converted: Rows
    unhealed: Rows | None = None
    gained: Rows | None = None


def confirm_conversion(
    loaded: LoadedModel,
    document: Mapping[str, Any],
    statistics: Statistics | None,
    healed: HealedLayers | None,
    n_docs: int | None,
) -> Confirmation:
    """Score the original, the mask and the healed mask on confirmation documents.

    Args:
        loaded: the mask's model, with nothing converted.
        document: the mask JSON.
        statistics: the mask's calibration, if its merge reads any.
        healed: the mask's layers after healing; None = the mask was not healed.
        n_docs: number of documents per task; None = all.

    Raises:
        MaskError: the mask names no task.
        ScoreError: a score is NaN or infinite.
    """
    tasks, seed = tasks_of(document, "to confirm it on")
    family = family_of(loaded.model.config.model_type)
    merge, library = merge_of(**document["merge"]), TaskLibrary()
    kv_heads = tuple(document["kv_heads"])

    def scored(layers: HealedLayers | None, *models: tuple[int, ...]) -> list[dict[str, Score]]:
        convertible = ConvertibleModel(loaded.model, family, merge, statistics, layers)
        scorer = SharedPrefixScorer(
            convertible, loaded.tokenizer, loaded.fingerprint, loaded.dtype, library=library
        )
        documents = Documents("confirmation", n_docs, seed)
        specs = [TaskSpec(task["name"], num_fewshot=task["num_fewshot"]) for task in tasks]
        return [
            {spec.name: scorer.score(heads, spec, documents) for spec in specs} for heads in models
        ]

    original, unhealed = scored(None, (loaded.shape.n_kv_heads,) * len(kv_heads), kv_heads)
    if healed is None:
        return Confirmation(_rows(unhealed, original))
    (converted,) = scored(healed, kv_heads)
    return Confirmation(
        _rows(converted, original), _rows(unhealed, original), _rows(converted, unhealed)
    )


def _rows(scores: Mapping[str, Score], originals: Mapping[str, Score]) -> Rows:
    return {task: against(task, score, originals[task]) for task, score in scores.items()}


def with_confirmation(document: Mapping[str, Any], confirmation: Confirmation) -> dict[str, Any]:
    """The mask JSON with these results instead of its own.

    Raises:
        MaskError: only one of mask JSON and confirmation is of a healed mask.
    """
    if ("healed" in document) != (confirmation.unhealed is not None):
        raise MaskError("the confirmation is of another conversion than the mask JSON")
    scores, baseline, delta = evidence(confirmation.converted)
    confirmed = {**document, "scores": scores, "baseline": baseline, "delta": delta}
    if confirmation.unhealed is not None and confirmation.gained is not None:
        before, _, delta_before = evidence(confirmation.unhealed)
        *_, gained = evidence(confirmation.gained)
        confirmed["healed"] = {
            **document["healed"],
            "unhealed": {"scores": before, "delta": delta_before},
            "gained": gained,
        }
    plain: dict[str, Any] = json.loads(json.dumps(confirmed))  # JSON has no tuples
    return plain
