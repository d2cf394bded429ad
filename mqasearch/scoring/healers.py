"""Finalists healed: a scorer of the model after distillation, and the key of its scores."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Protocol

import torch

from mqasearch.conversion import ConvertibleModel, Merge, Statistics
from mqasearch.families import family_of
from mqasearch.heal_recipe import DEVICES, ENDINGS, Recipe
from mqasearch.healing import Step, heal, how_healed, text_for
from mqasearch.mask import KVHeads
from mqasearch.models import LoadedModel
from mqasearch.score import ScoreKey
from mqasearch.scoring.fake import FakeScorer
from mqasearch.scoring.identity import HEALING_CODE
from mqasearch.scoring.scorer import Scorer
from mqasearch.scoring.shared_prefix import SharedPrefixScorer
from mqasearch.source_code import code_digest
from mqasearch.tasks import TaskLibrary

logger = logging.getLogger(__name__)

HEALING = "healing"
"""In place of a task's name, in the key under which is kept how a healing went."""


class Healer(Protocol):
    """Heals masks of one model."""

    @property
    def how(self) -> str:
        """What decides healed weights besides the mask, canonical."""
        ...

    def healed(self, kv_heads: KVHeads) -> tuple[Scorer, dict[str, float]]:
        """A scorer of the healed model, and how the healing went, in numbers; may take hours.

        Raises:
            UserError: too little memory.
        """
        ...


@dataclass(frozen=True)
class ModelHealer:
    """Distils a mask of a loaded model from the original, once on this machine.

    Attributes:
        loaded: the original; the scorers of healed models share it.
        merge: of the masks.
        statistics: its calibration, if it reads any.
        sequences: token ids of calibration texts.
        recipe: of every healing.
        library: prepared tasks to share with other scorers.
    """

    loaded: LoadedModel
    merge: Merge
    statistics: Statistics | None
    sequences: Sequence[Sequence[int]]
    recipe: Recipe
    library: TaskLibrary

    def __post_init__(self) -> None:
        text_for(self.loaded.model, self.sequences, self.recipe)  # too little is said at once

    @property
    def how(self) -> str:
        """Recipe and text."""
        return how_healed(self.sequences, self.recipe)

    def healed(self, kv_heads: KVHeads) -> tuple[Scorer, dict[str, float]]:
        """Heal, or take the result or the state of an interrupted healing from the cache."""
        loaded, model = self.loaded, self.loaded.model
        logger.info(
            "healing %d layers on %s tokens of calibration text, at most %d steps",
            sum(heads < loaded.shape.n_kv_heads for heads in kv_heads),
            f"{sum(map(len, self.sequences)):,}",
            self.recipe.n_steps,
        )
        if loaded.device.type == "cuda":
            torch.cuda.empty_cache()  # what the search held is not in the way
        family = family_of(model.config.model_type)
        plain = ConvertibleModel(model, family, self.merge, self.statistics)
        found = heal(
            plain,
            kv_heads,
            self.sequences,
            self.recipe,
            fingerprint=loaded.fingerprint,
            watch=_tell,
        )
        convertible = plain.with_healed(found.layers)
        scorer = SharedPrefixScorer(
            convertible, loaded.tokenizer, loaded.fingerprint, loaded.dtype, library=self.library
        )
        assert found.facts is not None, "a finalist converts a layer"
        facts = asdict(found.facts)
        numbers = {name: float(facts[name]) for name in NUMBERS}
        numbers["ending"] = float(ENDINGS.index(found.facts.ending))
        numbers["device"] = float(DEVICES.index(found.place.device))
        return scorer, numbers


def _tell(step: Step) -> None:
    """A log line for every twentieth of the steps."""
    if step.step % max(1, step.n_steps // 20) == 0:
        logger.info(
            "healing, step %d of %d: KL %.3f, held out %.3f, about %.0f s left",
            step.step,
            step.n_steps,
            step.loss,
            step.held_out,
            step.seconds_left,
        )


NUMBERS = ("steps", "best_step", "n_tokens", "n_text_tokens", "before", "after")
"""Of ``Facts``: what is kept of how a healing went. Beside them, as indexes: ending and device."""


@dataclass(frozen=True)
class FakeHealer:
    """Halves the loss of a fake model's masks."""

    scorer: FakeScorer
    recipe: Recipe

    @property
    def how(self) -> str:
        """The recipe."""
        return how_healed([], self.recipe)

    def healed(self, kv_heads: KVHeads) -> tuple[Scorer, dict[str, float]]:
        """As slow as one score."""
        scorer = self.scorer.healed()
        loss = self.scorer.loss(kv_heads)
        steps = float(self.recipe.n_steps)
        numbers = (steps, steps, 0.0, 0.0, loss, loss / 2)
        return scorer, {**dict(zip(NUMBERS, numbers, strict=True)), "ending": 0.0, "device": 0.0}


@cache
def healing_code() -> str:
    """SHA-256 (hex) of the code that heals, as it was when this process asked first."""
    return code_digest(HEALING_CODE, ())


def healed_key(key: ScoreKey, how: str) -> ScoreKey:
    """The key of a mask's score after healing, from that before."""
    return replace(key, merge=f"{key.merge} {how}", code=with_healing(key.code))


def with_healing(code: str) -> str:
    """The digest of all code of a study that heals, from that of the code that scores."""
    return hashlib.sha256(f"{code} {healing_code()}".encode()).hexdigest()
