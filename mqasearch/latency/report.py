"""What a latency measurement says, as data: for the table, the figure and JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from statistics import median
from typing import Any

import torch
import transformers

import mqasearch
from mqasearch.latency.gains import beyond_bytes, what_pays
from mqasearch.latency.runner import EngineUsed
from mqasearch.mask import KVHeads, ModelShape

SCHEMA_VERSION = 1
"""Of the JSON; ``export/latency.schema.json`` is the published schema."""


@dataclass(frozen=True, slots=True)
class Spread:
    """One figure over the repetitions: its median, least and greatest value, and all of them."""

    median: float
    low: float
    high: float
    samples: tuple[float, ...]

    @classmethod
    def of(cls, samples: Sequence[float]) -> "Spread":
        """Of the repetitions, in their order."""
        return cls(median(samples), min(samples), max(samples), tuple(samples))


@dataclass(frozen=True, slots=True)
class Variant:
    """The model with certain KV heads per layer.

    Attributes:
        name: in the table.
        n_converted: layers with fewer KV heads than the original's.
        kv_heads: per layer, layer 0 first.
        kv_bytes_per_token: of KV cache, over all layers.
        weight_bytes: of all parameters.
    """

    name: str
    n_converted: int
    kv_heads: KVHeads
    kv_bytes_per_token: int
    weight_bytes: int


@dataclass(frozen=True, slots=True)
class Row:
    """One variant in one setting. Times in seconds, memory in bytes.

    Attributes:
        variant: its name.
        context: tokens of the prompt.
        batch_size: sequences at a time.
        prefill: of the whole batch's prompt, to the first logits.
        prefill_bound: reading all weights and writing the cache once, at the measured bandwidth.
            Prefill computes more than it moves, so it may be far above.
        prefill_speedup: the original's time over this one's, round by round.
        decode: of one decoding step, which gives each sequence a token.
        decode_bound: reading all weights and the cache once, at the measured bandwidth.
        decode_speedup: as ``prefill_speedup``.
        decode_speedup_bound: what the bytes that a step reads allow: the original's over these. An
            engine whose original spends time on more than moving its cache once may gain more.
        kv_bytes_counted: of the cache after the last token, by the model's sizes.
        kv_bytes_measured: the same, of the cache's tensors in transformers; of other engines what
            one more token takes, times tokens.
        peak_bytes: the weights, and the most that a run held beyond them; None where the device
            keeps no record. On a CPU from the process's resident memory, so it is coarse.
        peak_bound: weights and cache.
    """

    variant: str
    context: int
    batch_size: int
    prefill: Spread
    prefill_bound: float
    prefill_speedup: Spread
    decode: Spread
    decode_bound: float
    decode_speedup: Spread
    decode_speedup_bound: float
    kv_bytes_counted: int
    kv_bytes_measured: int
    peak_bytes: int | None
    peak_bound: int


@dataclass(frozen=True, slots=True)
class Machine:
    """What it was measured on.

    Attributes:
        device: ``cpu``, ``cuda:0``.
        name: of the device.
        dtype: of weights and cache.
        threads: that torch computes with on the CPU.
        attention: the implementation of it in transformers; of other engines their own.
        load_average: runnable processes in the minute before; None where nobody counts.
        bandwidth: bytes per second of the fastest kernel, which the bounds rest on.
        bandwidths: of each kernel.
        buffer_bytes: working set of these kernels.
    """

    device: str
    name: str
    dtype: str
    threads: int
    attention: str
    load_average: float | None
    bandwidth: float
    bandwidths: dict[str, float]
    buffer_bytes: int


@dataclass(frozen=True, slots=True)
class Report:
    """Everything. The first variant is the one that the others are compared with."""

    model: str
    fingerprint: str
    shape: ModelShape
    merge: str
    n_tokens: int
    repetitions: int
    engine: EngineUsed
    machine: Machine
    variants: tuple[Variant, ...]
    rows: tuple[Row, ...]

    @property
    def pays(self) -> str:
        """Which settings pay for the variant with the smallest cache, and whether to trust it."""
        fewest = min(self.variants, key=lambda variant: variant.kv_bytes_per_token)
        rows = {
            (row.batch_size, row.context): row for row in self.rows if row.variant == fewest.name
        }
        speedups = {place: row.decode_speedup.samples for place, row in rows.items()}
        allowed = {place: row.decode_speedup_bound for place, row in rows.items()}
        said = (what_pays(speedups, fewest.name), beyond_bytes(speedups, allowed))
        return ". ".join(filter(None, said))

    def document(self) -> dict[str, Any]:
        """As JSON of ``latency.schema.json``."""
        shape = self.shape
        document = {
            "schema_version": SCHEMA_VERSION,
            "model": {
                "id": self.model,
                "fingerprint": self.fingerprint,
                "n_layers": shape.n_layers,
                "n_heads": shape.n_heads,
                "n_kv_heads": shape.n_kv_heads,
            },
            "merge": self.merge,
            "n_tokens": self.n_tokens,
            "repetitions": self.repetitions,
            "engine": {
                "name": self.engine.name,
                "version": self.engine.version,
                "format": self.engine.format,
            },
            "machine": asdict(self.machine),
            "variants": [asdict(variant) for variant in self.variants],
            "rows": [asdict(row) for row in self.rows],
            "pays": self.pays,
            "versions": {
                "mqasearch": mqasearch.__version__,
                "torch": str(torch.__version__),
                "transformers": transformers.__version__,
            },
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        plain: dict[str, Any] = json.loads(json.dumps(document, allow_nan=False))  # no tuples
        return plain
