"""The results of a latency measurement as data, for the table, the figure and JSON."""

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
"""Version of the JSON's schema, which is published as ``export/latency.schema.json``."""


@dataclass(frozen=True, slots=True)
class Spread:
    """One figure over the repetitions: its median, least and greatest value, and all of them."""

    median: float
    low: float
    high: float
    samples: tuple[float, ...]

    @classmethod
    def of(cls, samples: Sequence[float]) -> "Spread":
        """The spread of the repetitions, which are given in their order."""
        return cls(median(samples), min(samples), max(samples), tuple(samples))


@dataclass(frozen=True, slots=True)
class Variant:
    """The model with certain KV heads per layer.

    Attributes:
        name: name in the table.
        n_converted: number of layers with fewer KV heads than the original's.
        kv_heads: KV heads per layer, layer 0 first.
        kv_bytes_per_token: bytes of KV cache per token, over all layers.
        weight_bytes: bytes of all parameters.
    """

    name: str
    n_converted: int
    kv_heads: KVHeads
    kv_bytes_per_token: int
    weight_bytes: int


@dataclass(frozen=True, slots=True)
class Row:
    """One variant in one setting. Times are in seconds, memory is in bytes.

    Attributes:
        variant: the variant's name.
        context: tokens of the prompt.
        batch_size: sequences at a time.
        prefill: time from the whole batch's prompt to the first logits.
        prefill_bound: time to read all weights and write the cache once, at the measured bandwidth.
            Prefill computes more than it moves, so its time may be far above.
        prefill_speedup: the original's time over this variant's, round by round.
        decode: time of one decoding step, which gives each sequence a token.
        decode_bound: time to read all weights and the cache once, at the measured bandwidth.
        decode_speedup: the same as ``prefill_speedup`` for decoding.
        decode_speedup_bound: bytes that a step of the original reads over those that this variant's
            reads. The gain may be larger in an engine that spends time on something besides moving
            the original's cache once.
        kv_bytes_counted: bytes of the cache after the last token, by the model's sizes.
        kv_bytes_measured: the same bytes, measured: in transformers those of the cache's tensors,
            in other engines the bytes that one more token takes, times the number of tokens.
        peak_bytes: the weights, and the most that a run held beyond them; None if the device has
            no such record. On a CPU it is from the process's resident memory, so it is coarse.
        peak_bound: bytes of weights and cache.
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
    """The machine that ran the measurement.

    Attributes:
        device: torch's name of the device, as ``cpu`` or ``cuda:0``.
        name: the device's name.
        dtype: dtype of weights and cache.
        threads: number of threads that torch uses on the CPU.
        attention: implementation of attention in transformers, or "NAME's own" for an engine.
        load_average: runnable processes in the minute before; None if the system does not count.
        bandwidth: bytes per second of the fastest kernel, which the bounds are based on.
        bandwidths: kernel → its bytes per second.
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
    """The whole report. The other variants are compared with the first one.

    ``windows`` are the tokens that each layer attends to at most; None = all.
    """

    model: str
    fingerprint: str
    shape: ModelShape
    windows: tuple[int | None, ...]
    merge: str
    n_tokens: int
    repetitions: int
    engine: EngineUsed
    machine: Machine
    variants: tuple[Variant, ...]
    rows: tuple[Row, ...]

    @property
    def pays(self) -> str:
        """In which settings the variant with the smallest cache gains, and a warning if needed."""
        fewest = min(self.variants, key=lambda variant: variant.kv_bytes_per_token)
        rows = {
            (row.batch_size, row.context): row for row in self.rows if row.variant == fewest.name
        }
        speedups = {place: row.decode_speedup.samples for place, row in rows.items()}
        allowed = {place: row.decode_speedup_bound for place, row in rows.items()}
        said = (what_pays(speedups, fewest.name), beyond_bytes(speedups, allowed))
        return ". ".join(filter(None, said))

    def document(self) -> dict[str, Any]:
        """The report as JSON of ``latency.schema.json``."""
        shape = self.shape
        document = {
            "schema_version": SCHEMA_VERSION,
            "model": {
                "id": self.model,
                "fingerprint": self.fingerprint,
                "n_layers": shape.n_layers,
                "n_heads": shape.n_heads,
                "n_kv_heads": shape.n_kv_heads,
                "windows": list(self.windows),
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
