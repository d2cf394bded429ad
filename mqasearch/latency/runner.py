"""The latency measurement's interface to engines: variants of a model that can be run."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch

from mqasearch.errors import UserError
from mqasearch.latency.byte_counts import KVCount
from mqasearch.latency.machine import available_bytes
from mqasearch.latency.workload import Setting, Workload


@dataclass(frozen=True, slots=True)
class Run:
    """One prefill and the decoding after it: seconds, seconds per token, bytes of its cache."""

    prefill: float
    decode: float
    kv_bytes: int


@dataclass(frozen=True, slots=True)
class Weights:
    """Bytes of a variant's weights: those that it holds, and those that one forward pass reads."""

    held: int
    read: int


@dataclass(frozen=True, slots=True)
class EngineUsed:
    """What ran the variants.

    Attributes:
        name: "transformers", or a name in ``engines.ENGINES``.
        version: the engine's version, as it states it.
        format: format of the checkpoints that it loaded; None = the models were in this process.
        attention: the engine's implementation of attention.
    """

    name: str
    version: str
    format: str | None
    attention: str


class Runner(ABC):
    """The variants of a model, ready to run; a context manager that calls ``close`` at its end.

    Attributes:
        together: whether all variants are in memory at once.
        used: which engine it is.
    """

    together: bool
    used: EngineUsed

    @abstractmethod
    def weights(self, variant: str) -> Weights:
        """Bytes of a variant's weights."""

    @abstractmethod
    def run(self, variant: str, setting: Setting) -> Run:
        """Prefill and decode once.

        Raises:
            UserError: there is not enough memory for it, or the engine failed.
        """

    @abstractmethod
    def growth(self, variant: str, setting: Setting) -> int | None:
        """Run once, untimed, and return the most bytes held beyond the weights; None = unknown."""

    @abstractmethod
    def close(self) -> None:
        """Release what the runner holds outside this process's memory."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_memory(
    device: torch.device,
    kv_counts: Mapping[str, KVCount],
    workload: Workload,
    weight_bytes: int = 0,
) -> None:
    """Refuse a workload that needs too much memory before anything is run.

    A process that is killed for its memory could not say why.

    Args:
        device: the device whose memory is used.
        kv_counts: variant → its bytes of KV cache.
        workload: what is to be run.
        weight_bytes: bytes of weights that must still be loaded.

    Raises:
        UserError: there is not enough memory even for one variant.
    """
    available = available_bytes(device)
    for setting in workload.settings:
        n_tokens = setting.context + workload.n_tokens
        cache = setting.batch_size * max(kv_count.held(n_tokens) for kv_count in kv_counts.values())
        if available is not None and weight_bytes + cache > available:
            raise too_large(setting)


def too_large(setting: Setting) -> UserError:
    """The error for a setting that needs too much memory."""
    return UserError(
        f"there is not enough memory for a context of {setting.context} with batch size "
        f"{setting.batch_size}; use a smaller --context or --batch-size"
    )
