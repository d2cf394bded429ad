"""From a mask to a checkpoint: merge, heal, confirm, write, reproduce; or apply it to a model."""

from mqasearch.checkpoint.applied import Applied, apply_document, apply_heads
from mqasearch.checkpoint.confirmation import Confirmation, confirm_conversion
from mqasearch.checkpoint.convert import Checkpoint, check_request, convert_checkpoint, with_refit
from mqasearch.checkpoint.converted_loading import load_converted
from mqasearch.checkpoint.healed_mask import heal_for_mask, with_heal
from mqasearch.checkpoint.original import load_original
from mqasearch.checkpoint.reproducing import Reproduction, reproduce

__all__ = [
    "Applied",
    "Checkpoint",
    "Confirmation",
    "Reproduction",
    "apply_document",
    "apply_heads",
    "check_request",
    "confirm_conversion",
    "convert_checkpoint",
    "heal_for_mask",
    "load_converted",
    "load_original",
    "reproduce",
    "with_heal",
    "with_refit",
]
