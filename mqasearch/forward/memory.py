"""How much memory a scorer may use."""

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
"""Share that the original's outputs at the compared places may take by default."""

SHARERS_VARIABLE = "MQASEARCH_MEMORY_SHARERS"
"""Environment variable with the number of workers that share this worker's memory, and so the
shares above. ``run --workers`` sets it for the workers that it starts."""

MASKS_KEPT = 3
"""By default no more boundaries are kept than this many masks have; a fourth mask would save a
greedy search another 3 % of its work."""

_CPU_BATCH_TOKENS = 1024
_CPU_LOGITS_BYTES = 24 * 2**20
_LOGITS_SHARE, _MOST_LOGITS_BYTES = 0.05, 2**30
_BATCH_SHARE = 0.2
_LEAST_BATCH_TOKENS, _MOST_BATCH_TOKENS = 1024, 32_768
_ACTIVATIONS_PER_TOKEN = 40
"""Numbers that a block holds at its peak per token and hidden dimension, with room to spare."""


def free_bytes(device: torch.device) -> int:
    """Bytes of memory that are free on a device now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    available = int(psutil.virtual_memory().available)
    left = bytes_left_in_group()
    return available if left is None else min(available, left)


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error of PyTorch, Python or an accelerator's library means that memory ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(should_reduce_batch_size(error))


def default_state_budget(device: torch.device) -> int:
    """Bytes for kept states: ``STATE_SHARE`` of the free memory, divided among its sharers."""
    return int(STATE_SHARE * free_bytes(device)) // _n_sharers()


def default_reference_budget(device: torch.device) -> int:
    """Bytes for the original's outputs: ``REFERENCE_SHARE`` of free memory, divided likewise."""
    return int(REFERENCE_SHARE * free_bytes(device)) // _n_sharers()


def _n_sharers() -> int:
    sharers = os.environ.get(SHARERS_VARIABLE, "")
    return int(sharers) if sharers.isdigit() and int(sharers) else 1


def default_batch_tokens(device: torch.device, hidden_size: int, itemsize: int) -> int:
    """Tokens in a batch: on a CPU as many as suit its caches, on a GPU as many as fit."""
    if device.type == "cpu":
        return _CPU_BATCH_TOKENS
    per_token = _ACTIVATIONS_PER_TOKEN * hidden_size * itemsize
    tokens = int(_BATCH_SHARE * free_bytes(device)) // per_token
    return max(_LEAST_BATCH_TOKENS, min(tokens, _MOST_BATCH_TOKENS))


def default_logits_bytes(device: torch.device) -> int:
    """Bytes of logits to hold at once.

    On a CPU they are below 32 MB: the allocator returns every larger block to the system, and the
    next block costs time page by page. A GPU is as busy with 1 GiB as with more; what is computed
    from the logits takes several times as much memory.
    """
    if device.type == "cpu":
        return _CPU_LOGITS_BYTES
    share = int(_LOGITS_SHARE * free_bytes(device))
    return max(_CPU_LOGITS_BYTES, min(share, _MOST_LOGITS_BYTES))
