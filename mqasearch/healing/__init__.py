"""Healing: a short distillation of one chosen mask from the original model.

Only the attention weights of converted layers are trained, on KL(original ‖ converted) over
calibration text. Since this is training, no search and no mask's score includes it: a healed model
is another model, with scores of its own.
"""

from mqasearch.healing.healed import Healed, heal, how_healed, text_for
from mqasearch.healing.steps import Step, Watch

__all__ = ["Healed", "Step", "Watch", "heal", "how_healed", "text_for"]
