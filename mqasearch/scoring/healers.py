"""Heals finalists: a scorer of the model after distillation, and the keys of its scores."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Protocol

import torch

from mqasearch.conversion import ConvertibleModel
from mqasearch.families import family_of
from mqasearch.heal_recipe import DEVICES, ENDINGS, Recipe
from mqasearch.healing import Step, heal, how_healed, text_for
from mqasearch.mask import KVHeads
from mqasearch.merging import Merge, Statistics
from mqasearch.models import LoadedModel
from mqasearch.score import ScoreKey
from mqasearch.scoring.fake import FakeScorer
from mqasearch.scoring.identity import HEALING_CODE
from mqasearch.scoring.scorer import Scorer
from mqasearch.scoring.shared_prefix import SharedPrefixScorer
from mqasearch.source_code import code_digest
from mqasearch.tasks import TaskLibrary
from mqasearch.time_left import in_words

logger = logging.getLogger(__name__)

HEALING = "healing"
"""Stands for a task's name in the key under which the numbers of a healing are stored."""


class Healer(Protocol):
    """Heals masks of one model."""

    @property
    def how(self) -> str:
        """All that healed weights depend on besides the mask, in canonical form."""
        ...

    def healed(self, kv_heads: KVHeads) -> tuple[Scorer, dict[str, float]]:
        """A scorer of the healed model, and numbers that say how the healing went.

        This may take hours.

        Raises:
            UserError: there is too little memory.
        """
        ...


@dataclass(frozen=True)
class ModelHealer:
    """Distils a converted model from the original; each mask is healed once on this machine.

    Attributes:
        loaded: the original model; the scorers of healed models share it.
        merge: the merge that converts layers.
        statistics: the merge's calibration; None if it reads none.
        sequences: token ids of calibration texts.
        recipe: the recipe of every healing.
        library: prepared tasks to share with other scorers.
    """

    loaded: LoadedModel
    merge: Merge
    statistics: Statistics | None
    sequences: Sequence[Sequence[int]]
    recipe: Recipe
    library: TaskLibrary

    def __post_init__(self) -> None:
        text_for(self.loaded.model, self.sequences, self.recipe)  # raises if there is too little

    @property
    def how(self) -> str:
        """The recipe and the text in canonical form."""
        return how_healed(self.sequences, self.recipe)

    def healed(self, kv_heads: KVHeads) -> tuple[Scorer, dict[str, float]]:
        """Heal the mask; the result, or an interrupted healing's state, may be in the cache."""
        loaded, model = self.loaded, self.loaded.model
        logger.info(
            "healing %d layers on %s tokens of calibration text, at most %d steps",
            sum(heads < loaded.shape.n_kv_heads for heads in kv_heads),
            f"{sum(map(len, self.sequences)):,}",
            self.recipe.n_steps,
        )
        if loaded.device.type == "cuda":
            torch.cuda.empty_cache()  # free the memory that the search used
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
            "healing, step %d of %d: KL %.3f, held out %.3f, about %s left",
            step.step,
            step.n_steps,
            step.loss,
            step.held_out,
            in_words(step.seconds_left),
        )


NUMBERS = ("steps", "best_step", "n_tokens", "n_text_tokens", "before", "after")
"""Fields of ``Facts`` that are stored of a healing; ending and device are stored as indexes."""


@dataclass(frozen=True)
class FakeHealer:
    """Halves the loss of a fake model's masks."""

    scorer: FakeScorer
    recipe: Recipe

    @property
    def how(self) -> str:
        """The recipe in canonical form."""
        return how_healed([], self.recipe)

    def healed(self, kv_heads: KVHeads) -> tuple[Scorer, dict[str, float]]:
        """A scorer with half the loss, and made-up numbers of the healing."""
        scorer = self.scorer.healed()
        loss = self.scorer.loss(kv_heads)
        steps = float(self.recipe.n_steps)
        numbers = (steps, steps, 0.0, 0.0, loss, loss / 2)
        return scorer, {**dict(zip(NUMBERS, numbers, strict=True)), "ending": 0.0, "device": 0.0}


@cache
def healing_code() -> str:
    """SHA-256 (hex) of the code that heals, as it was at the first call in this process."""
    return code_digest(HEALING_CODE, ())


def healed_key(key: ScoreKey, how: str) -> ScoreKey:
    """The key of a mask's score after healing, made from the key before healing."""
    return replace(key, merge=f"{key.merge} {how}", code=with_healing(key.code))


def with_healing(code: str) -> str:
    """Digest of the code that scores and heals, from ``code``, that of the code that scores."""
    return hashlib.sha256(f"{code} {healing_code()}".encode()).hexdigest()
