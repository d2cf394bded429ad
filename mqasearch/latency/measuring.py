"""How much time and memory fewer KV heads save: a measurement for research question RQ1.

A *variant* is the model with certain KV heads per layer: the original itself, or what
``mqasearch convert`` would write, with fewer heads in weights and cache. A *setting* is a context
length and a batch size. In every setting the variants take turns, one repetition each per round,
and every round starts with another variant. So other work of the machine affects all variants
alike, and the times of one round can be compared pairwise.

Speed does not depend on the weights, so neither the merge nor the prompt matters. A ``Runner`` runs
the variants: transformers in this process, or a stock engine in processes of its own.
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from mqasearch.conversion import ConvertibleModel
from mqasearch.errors import UserError
from mqasearch.families import family_of
from mqasearch.latency.byte_counts import KVCount
from mqasearch.latency.engine_runner import EngineRunner, check_engine, sequence_tokens
from mqasearch.latency.machine import Bandwidth, device_name, load_average
from mqasearch.latency.report import Machine, Report, Row, Spread, Variant
from mqasearch.latency.runner import Run, Runner, Weights
from mqasearch.latency.transformers_runner import TRANSFORMERS, TransformersRunner
from mqasearch.latency.workload import Setting, Turn, Workload
from mqasearch.mask import KVHeads, ModelShape
from mqasearch.merging import merge_of
from mqasearch.models import LoadedModel

logger = logging.getLogger(__name__)


def measure(
    loaded: LoadedModel,
    variants: Mapping[str, KVHeads],
    workload: Workload,
    *,
    merge: str = "mean",
    engine: str = TRANSFORMERS,
    engine_python: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Time prefill and decoding; count and measure memory.

    Args:
        loaded: the original model, on its device, in its dtype.
        variants: name → KV heads per layer. The others are compared with the first.
        workload: what is run.
        merge: name of a merge that needs no calibration.
        engine: what runs it: "transformers", or a name in ``engines.ENGINES``.
        engine_python: the Python that has the engine; None = ``engines.engine_python`` finds it.
        progress: called with (done, total) after every run.

    Raises:
        UnknownNameError: an unknown engine, model type or merge.
        ModelError: a model that cannot be converted, or not to a format that the engine loads.
        MaskError: KV heads that do not fit the model.
        UserError: a merge that needs calibration; more tokens than the model's positions or the
            memory allow; an engine that is not installed, or that failed.
    """
    check_engine(engine, engine_python, workload)
    convertible = _convertible(loaded.model, merge)
    _check_positions(loaded.model, workload, engine)
    shape, config = convertible.shape, loaded.model.config
    for kv_heads in variants.values():
        convertible.check(kv_heads)
    kv_counts = {name: KVCount(shape, kv_heads, config) for name, kv_heads in variants.items()}
    load = load_average()
    _warn_if_busy(loaded.device, load)
    runner: Runner = (
        TransformersRunner(convertible, variants, kv_counts, workload)
        if engine == TRANSFORMERS
        else EngineRunner(loaded, convertible, variants, kv_counts, workload, engine, engine_python)
    )
    with runner:
        weights = {name: runner.weights(name) for name in variants}
        bandwidth = Bandwidth(loaded.device, loaded.dtype, next(iter(weights.values())).read)
        session = _Session(runner, bandwidth)
        session.take_all(workload.turns(list(variants), together=runner.together), progress)
    table = _Rows(session, list(variants), weights, kv_counts, workload.n_tokens)
    return Report(
        model=loaded.name,
        fingerprint=loaded.fingerprint,
        shape=shape,
        windows=next(iter(kv_counts.values())).windows,
        merge=convertible.merge.digest,
        n_tokens=workload.n_tokens,
        repetitions=workload.repetitions,
        engine=runner.used,
        machine=_machine(loaded, bandwidth, load, runner.used.attention),
        variants=tuple(
            _variant(name, kv_heads, shape, weights[name]) for name, kv_heads in variants.items()
        ),
        rows=tuple(table.row(setting, name) for setting in workload.settings for name in variants),
    )


def _convertible(model: PreTrainedModel, merge: str) -> ConvertibleModel:
    chosen = merge_of(merge)
    if chosen.needs_statistics:
        raise UserError(
            f"merge {merge!r} needs calibration, and speed depends on no merge: use --merge mean"
        )
    return ConvertibleModel(model, family_of(model.config.model_type), chosen)


class _Session:
    """Takes the measurements, and holds their results so far."""

    def __init__(self, runner: Runner, bandwidth: Bandwidth) -> None:
        self.bandwidth = bandwidth
        self.runs: dict[tuple[Setting, str], list[Run]] = {}
        self.growth: dict[tuple[Setting, str], int | None] = {}
        self._runner = runner

    def take_all(self, turns: Sequence[Turn], progress: Callable[[int, int], None] | None) -> None:
        """Run every turn; ``progress`` is called with (done, total) after each."""
        for done, turn in enumerate(turns, 1):
            self._take(turn)
            if progress is not None:
                progress(done, len(turns))

    def _take(self, turn: Turn) -> None:
        place = turn.setting, turn.variant
        if turn.opens_round:
            self.bandwidth.sample()
        if turn.timed:
            run = self._runner.run(turn.variant, turn.setting)
            self.runs.setdefault(place, []).append(run)
        else:
            self.growth[place] = self._runner.growth(turn.variant, turn.setting)


class _Rows:
    """Makes the report's rows: times and memory with their bounds."""

    def __init__(
        self,
        session: _Session,
        names: list[str],
        weights: Mapping[str, Weights],
        kv_counts: Mapping[str, KVCount],
        n_tokens: int,
    ) -> None:
        self._session, self._original = session, names[0]
        self._weights, self._kv_counts, self._n_tokens = weights, kv_counts, n_tokens

    def row(self, setting: Setting, name: str) -> Row:
        """One variant in one setting."""
        session = self._session
        runs = session.runs[setting, name]
        originals = session.runs[setting, self._original]
        growth = session.growth[setting, name]
        kv_count, weights, batch = self._kv_counts[name], self._weights[name], setting.batch_size
        kv_bytes = batch * kv_count.held(setting.context + self._n_tokens)
        written = weights.read + batch * kv_count.held(setting.context)
        return Row(
            variant=name,
            context=setting.context,
            batch_size=batch,
            prefill=Spread.of([run.prefill for run in runs]),
            prefill_bound=written / session.bandwidth.bytes_per_second,
            prefill_speedup=Spread.of(
                [one.prefill / run.prefill for one, run in zip(originals, runs, strict=True)]
            ),
            decode=Spread.of([run.decode for run in runs]),
            decode_bound=self._decode_bytes(setting, name) / session.bandwidth.bytes_per_second,
            decode_speedup=Spread.of(
                [one.decode / run.decode for one, run in zip(originals, runs, strict=True)]
            ),
            decode_speedup_bound=self._decode_bytes(setting, self._original)
            / self._decode_bytes(setting, name),
            kv_bytes_counted=kv_bytes,
            kv_bytes_measured=runs[-1].kv_bytes,
            peak_bytes=None if growth is None else weights.held + growth,
            peak_bound=weights.held + kv_bytes,
        )

    def _decode_bytes(self, setting: Setting, name: str) -> float:
        """Bytes that are read in one decoding step."""
        per_step = self._kv_counts[name].read_per_step(setting.context, self._n_tokens)
        return self._weights[name].read + setting.batch_size * per_step


def _variant(name: str, kv_heads: KVHeads, shape: ModelShape, weights: Weights) -> Variant:
    return Variant(
        name=name,
        n_converted=sum(heads < shape.n_kv_heads for heads in kv_heads),
        kv_heads=kv_heads,
        kv_bytes_per_token=shape.kv_bytes_per_token(kv_heads),
        weight_bytes=weights.held,
    )


def _machine(
    loaded: LoadedModel, bandwidth: Bandwidth, load: float | None, attention: str
) -> Machine:
    return Machine(
        device=str(loaded.device),
        name=device_name(loaded.device),
        dtype=str(loaded.dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        attention=attention,
        load_average=load,
        bandwidth=bandwidth.bytes_per_second,
        bandwidths=dict(bandwidth.rates),
        buffer_bytes=bandwidth.buffer_bytes,
    )


def _warn_if_busy(device: torch.device, load: float | None) -> None:
    cores = os.cpu_count() or 1
    if device.type == "cpu" and load is not None and load > cores:
        logger.warning(
            "load average %.1f on %d cores: other processes are at work, times will be long and "
            "scattered; measure when they are done, or with fewer threads (OMP_NUM_THREADS)",
            load,
            cores,
        )


def _check_positions(model: PreTrainedModel, workload: Workload, engine: str) -> None:
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    context, n_tokens = max(workload.contexts), workload.n_tokens
    needed = context + n_tokens if engine == TRANSFORMERS else sequence_tokens(workload)
    if positions is None or needed <= positions:
        return
    room = positions - (needed - context)
    cure = f"use --context {room} or less" if room > 0 else "use a smaller --n-tokens"
    raise UserError(
        f"a context of {context} and {n_tokens} decoded tokens exceed the model's {positions} "
        f"positions; {cure}"
    )
