"""Forward passes of one model with many masks: batches, trees, kept states, memory."""

from mqasearch.forward.batch_size import BatchSize
from mqasearch.forward.batches import Answer, Plan, TokenPair, plan_of
from mqasearch.forward.likelihoods import Divergence
from mqasearch.forward.memory import (
    MASKS_KEPT,
    SHARERS_VARIABLE,
    default_batch_tokens,
    default_logits_bytes,
    default_reference_budget,
    default_state_budget,
    free_bytes,
    ran_out_of_memory,
)
from mqasearch.forward.plan_runner import PlanAnswers, PlanRunner
from mqasearch.forward.probe import resumes, takes_trees
from mqasearch.forward.reference import ReferenceStore
from mqasearch.forward.states import StateStore
from mqasearch.forward.trees import ROW_TOKENS

__all__ = [
    "MASKS_KEPT",
    "ROW_TOKENS",
    "SHARERS_VARIABLE",
    "Answer",
    "BatchSize",
    "Divergence",
    "Plan",
    "PlanAnswers",
    "PlanRunner",
    "ReferenceStore",
    "StateStore",
    "TokenPair",
    "default_batch_tokens",
    "default_logits_bytes",
    "default_reference_budget",
    "default_state_budget",
    "free_bytes",
    "plan_of",
    "ran_out_of_memory",
    "resumes",
    "takes_trees",
]
