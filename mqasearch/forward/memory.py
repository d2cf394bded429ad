"""How much memory a scorer may take."""

import os

import psutil  # type: ignore[import-untyped]
import torch
from accelerate.utils.memory import (  # type: ignore[import-untyped]
    should_reduce_batch_size,
)

from mqasearch.forward.memory_limit import bytes_left_in_group

STATE_SHARE = 1 / 6
"""Share of the free memory that kept states may take by default."""

REFERENCE_SHARE = 1 / 24
"""And what the original says at the places where masks are compared with it."""

SHARERS_VARIABLE = "MQASEARCH_MEMORY_SHARERS"
"""Names how many workers share this one's memory, and with it that share. Set for the workers that
``run --workers`` starts."""

MASKS_KEPT = 3
"""And no more boundaries by default than this many masks have: a fourth one saves a greedy search
another 3 % of its work."""

_CPU_BATCH_TOKENS = 1024
_CPU_LOGITS_BYTES = 24 * 2**20
_LOGITS_SHARE, _MOST_LOGITS_BYTES = 0.05, 2**30
_BATCH_SHARE = 0.2
_LEAST_BATCH_TOKENS, _MOST_BATCH_TOKENS = 1024, 32_768
_ACTIVATIONS_PER_TOKEN = 40
"""Numbers that a block holds at its peak per token and hidden dimension, with room to spare."""


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a device now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    available = int(psutil.virtual_memory().available)
    left = bytes_left_in_group()
    return available if left is None else min(available, left)


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error says so: PyTorch's own, Python's, or that of an accelerator's library."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(should_reduce_batch_size(error))


def default_state_budget(device: torch.device) -> int:
    """Bytes for kept states: ``STATE_SHARE`` of what is free, for all who share it."""
    return int(STATE_SHARE * free_bytes(device)) // _n_sharers()


def default_reference_budget(device: torch.device) -> int:
    """Bytes for the original's outputs: ``REFERENCE_SHARE`` of what is free, for all sharers."""
    return int(REFERENCE_SHARE * free_bytes(device)) // _n_sharers()


def _n_sharers() -> int:
    sharers = os.environ.get(SHARERS_VARIABLE, "")
    return int(sharers) if sharers.isdigit() and int(sharers) else 1


def default_batch_tokens(device: torch.device, hidden_size: int, itemsize: int) -> int:
    """Tokens in a batch: on a CPU what suits its caches, else what fits."""
    if device.type == "cpu":
        return _CPU_BATCH_TOKENS
    per_token = _ACTIVATIONS_PER_TOKEN * hidden_size * itemsize
    tokens = int(_BATCH_SHARE * free_bytes(device)) // per_token
    return max(_LEAST_BATCH_TOKENS, min(tokens, _MOST_BATCH_TOKENS))


def default_logits_bytes(device: torch.device) -> int:
    """Bytes of logits to hold at once. On a CPU below 32 MB, above which the allocator hands every
    block back to the system, and the next one is paid for page by page. A GPU is as busy with 1 GiB
    as with more; what is computed from the logits takes several times as much."""
    if device.type == "cpu":
        return _CPU_LOGITS_BYTES
    share = int(_LOGITS_SHARE * free_bytes(device))
    return max(_CPU_LOGITS_BYTES, min(share, _MOST_LOGITS_BYTES))
