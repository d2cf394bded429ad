"""Scorers, which score a model with any KV heads on documents, and what scores depend on."""

from mqasearch.scoring.fake import FakeScorer
from mqasearch.scoring.harness import ResidentLM
from mqasearch.scoring.healers import HEALING, Healer, healed_key, with_healing
from mqasearch.scoring.identity import PACKAGES, scoring_code, tokenizer_digest
from mqasearch.scoring.scorer import Scorer
from mqasearch.scoring.scorers import (
    CalibrationText,
    Scoring,
    calibrate_for_mask,
    check_model_name,
    mask_text,
    model_shape,
    open_scoring,
    search_split,
)
from mqasearch.scoring.shared_prefix import SharedPrefixScorer

__all__ = [
    "HEALING",
    "PACKAGES",
    "CalibrationText",
    "FakeScorer",
    "Healer",
    "ResidentLM",
    "Scorer",
    "Scoring",
    "SharedPrefixScorer",
    "calibrate_for_mask",
    "check_model_name",
    "healed_key",
    "mask_text",
    "model_shape",
    "open_scoring",
    "scoring_code",
    "search_split",
    "tokenizer_digest",
    "with_healing",
]
