"""What fewer KV heads are worth in time and memory: research question RQ1, measured.

A *variant* is the model with certain KV heads per layer: the original itself, or what
``mqasearch convert`` would write, with fewer heads in weights and cache. A *setting* is a context
length and a batch size. In every setting the variants take turns, one repetition each per round,
and every round starts with another one: whatever else the machine does falls on all alike, and the
times of one round can be compared pairwise.

Decoding is transformers' own, greedy, with its ``DynamicCache``, which is copied at every token.
Speed does not depend on the weights, so neither merge nor prompt matter.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count, product

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from mqasearch.conversion import ConvertibleModel, merge_of
from mqasearch.errors import UserError
from mqasearch.families import family_of
from mqasearch.mask import KVHeads, LayerMask, ModelShape
from mqasearch.models import LoadedModel
from mqasearch.serving.latency_bytes import KVCount, weight_bytes, weight_bytes_read
from mqasearch.serving.latency_device import (
    Bandwidth,
    available_bytes,
    device_name,
    load_average,
    no_collection,
    peak_growth,
    seconds,
)
from mqasearch.serving.latency_models import CompactModels
from mqasearch.serving.latency_report import Machine, Report, Row, Spread, Variant

logger = logging.getLogger(__name__)

SHARES = (0, 25, 50, 75, 100)
"""Per cent of the layers that become multi-query where no mask is given."""

_SEED = 0  # of the prompts


@dataclass(frozen=True, slots=True)
class Workload:
    """What is run.

    Attributes:
        contexts: tokens of the prompt; each with each of ``batch_sizes`` is a setting.
        batch_sizes: sequences at a time.
        n_tokens: decoded after the prompt.
        repetitions: that are timed, of each variant in each setting.
    """

    contexts: tuple[int, ...] = (512, 2048)
    batch_sizes: tuple[int, ...] = (1, 4)
    n_tokens: int = 32
    repetitions: int = 5

    def __post_init__(self) -> None:
        given = {
            "--context": self.contexts,
            "--batch-size": self.batch_sizes,
            "--n-tokens": (self.n_tokens,),
            "--repetitions": (self.repetitions,),
        }
        for option, numbers in given.items():
            if not numbers or min(numbers) < 1:
                raise UserError(f"{option}: must be 1 or more, not {min(numbers, default='none')}")

    @property
    def settings(self) -> tuple["Setting", ...]:
        """Every context length with every batch size."""
        pairs = product(dict.fromkeys(self.contexts), dict.fromkeys(self.batch_sizes))
        return tuple(Setting(context, batch_size) for context, batch_size in pairs)


@dataclass(frozen=True, slots=True)
class Setting:
    """A prompt's length and the number of sequences at a time."""

    context: int
    batch_size: int


@dataclass(frozen=True, slots=True)
class Run:
    """One prefill and the decoding after it: seconds, seconds per token, bytes of its cache."""

    prefill: float
    decode: float
    kv_bytes: int


def shares_of_layers(shape: ModelShape) -> dict[str, KVHeads]:
    """0, 25, 50, 75 and 100 % of the layers with one KV head, evenly spread.

    Which layers they are does not matter for speed, unless only some have a sliding window.
    """
    n_layers = shape.n_layers
    variants = {}
    for share in SHARES:
        chosen = round(n_layers * share / 100)
        layers = ((2 * place + 1) * n_layers // (2 * chosen) for place in range(chosen))
        variants[f"{chosen} of {n_layers} MQA"] = LayerMask.of(layers, n_layers).kv_heads(shape)
    return variants


def measure(
    loaded: LoadedModel,
    variants: Mapping[str, KVHeads],
    workload: Workload,
    *,
    merge: str = "mean",
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Time prefill and decoding; count and measure memory.

    Args:
        loaded: the original model, on its device, in its dtype.
        variants: name → KV heads per layer. The first is what the others are compared with.
        workload: what is run.
        merge: by name; one that needs no calibration.
        progress: called with (done, total) after every run.

    Raises:
        UnknownNameError: an unknown model type or merge.
        ModelError: a model that cannot be converted.
        MaskError: KV heads that do not fit the model.
        UserError: a merge that needs calibration; more tokens than the model has positions for, or
            than there is memory for.
    """
    model, device = loaded.model, loaded.device
    convertible = _convertible(model, merge)
    _check_positions(model, workload)
    shape = convertible.shape
    compact = CompactModels(convertible)
    models = {name: compact.model(kv_heads) for name, kv_heads in variants.items()}
    kv_counts = {name: KVCount(shape, heads, model.config) for name, heads in variants.items()}
    _check_memory(device, kv_counts, workload)

    load = load_average()
    _warn_if_busy(device, load)
    bandwidth = Bandwidth(device, loaded.dtype, weight_bytes_read(model))
    session = _Session(device, models, workload.n_tokens, workload.repetitions)
    total = len(workload.settings) * session.runs_per_setting
    done = count(1)
    for setting in workload.settings:
        for _ in session.run(setting, bandwidth):
            if progress is not None:
                progress(next(done), total)
    return Report(
        model=loaded.name,
        fingerprint=loaded.fingerprint,
        shape=shape,
        merge=convertible.merge.digest,
        n_tokens=workload.n_tokens,
        repetitions=workload.repetitions,
        machine=_machine(loaded, bandwidth, load),
        variants=tuple(
            _variant(name, kv_heads, shape, models[name]) for name, kv_heads in variants.items()
        ),
        rows=tuple(
            _row(session, setting, name, kv_counts[name], bandwidth.bytes_per_second)
            for setting in workload.settings
            for name in variants
        ),
    )


def _convertible(model: PreTrainedModel, merge: str) -> ConvertibleModel:
    chosen = merge_of(merge)
    if chosen.needs_statistics:
        raise UserError(
            f"merge {merge!r} needs calibration, and speed depends on no merge: use --merge mean"
        )
    return ConvertibleModel(model, family_of(model.config.model_type), chosen)


class _Session:
    """The variants in memory, and what has been measured of them."""

    def __init__(
        self,
        device: torch.device,
        models: Mapping[str, PreTrainedModel],
        n_tokens: int,
        repetitions: int,
    ) -> None:
        self.models = models
        self.n_tokens = n_tokens
        self.runs: dict[tuple[Setting, str], list[Run]] = {}
        self.growth: dict[tuple[Setting, str], int | None] = {}
        self._device = device
        self._repetitions = repetitions
        short = Setting(context=4, batch_size=1)
        for name in models:  # brings every weight into memory before growth is measured
            run_once(models[name], _prompt(models[name], short), n_tokens=2)

    @property
    def runs_per_setting(self) -> int:
        """One for memory, which warms up too, then those that are timed."""
        return len(self.models) * (1 + self._repetitions)

    def run(self, setting: Setting, bandwidth: Bandwidth) -> Iterator[None]:
        """Measure one setting; yields after every run.

        Raises:
            UserError: there is not enough memory for it.
        """
        names = list(self.models)
        try:
            for name in names:
                self._measure_memory(setting, name)
                yield
            for round_ in range(self._repetitions):
                bandwidth.sample()
                start = round_ % len(names)
                for name in names[start:] + names[:start]:
                    prompt = _prompt(self.models[name], setting)
                    run = run_once(self.models[name], prompt, self.n_tokens)
                    self.runs.setdefault((setting, name), []).append(run)
                    yield
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not isinstance(error, torch.OutOfMemoryError) and "allocate" not in str(error):
                raise
            raise _too_large(setting) from error

    def _measure_memory(self, setting: Setting, name: str) -> None:
        model = self.models[name]
        prompt = _prompt(model, setting)
        self.growth[setting, name] = peak_growth(
            self._device, lambda: run_once(model, prompt, self.n_tokens)
        )


@torch.inference_mode()
def run_once(model: PreTrainedModel, prompt: Tensor, n_tokens: int) -> Run:
    """Prefill ``prompt`` [batch, context], then decode ``n_tokens`` tokens greedily.

    Only the logits of the last position are computed, as ``generate`` does.
    """
    device = prompt.device
    cache = DynamicCache(config=model.config)
    token = prompt

    def step() -> None:
        nonlocal token
        logits = model(token, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        token = logits[:, -1:].argmax(dim=-1)

    def decode() -> None:
        for _ in range(n_tokens):
            step()

    with no_collection():
        prefill_seconds = seconds(device, step)
        decode_seconds = seconds(device, decode)
    kv_bytes = sum(keys.nbytes + values.nbytes for keys, values, _ in cache)
    return Run(prefill_seconds, decode_seconds / n_tokens, kv_bytes)


def _prompt(model: PreTrainedModel, setting: Setting) -> Tensor:
    """Random tokens [batch, context], the same for every variant."""
    generator = torch.Generator().manual_seed(_SEED)
    vocabulary = model.config.get_text_config().vocab_size
    size = (setting.batch_size, setting.context)
    return torch.randint(vocabulary, size, generator=generator).to(model.device)


def _row(
    session: _Session, setting: Setting, name: str, kv_count: KVCount, bandwidth: float
) -> Row:
    model, runs = session.models[name], session.runs[setting, name]
    originals = session.runs[setting, next(iter(session.models))]
    growth = session.growth[setting, name]
    weights, read = weight_bytes(model), weight_bytes_read(model)
    context, batch_size, n_tokens = setting.context, setting.batch_size, session.n_tokens
    kv_bytes = batch_size * kv_count.held(context + n_tokens)
    read_per_step = batch_size * kv_count.read_per_step(context, n_tokens)
    return Row(
        variant=name,
        context=context,
        batch_size=batch_size,
        prefill=Spread.of([run.prefill for run in runs]),
        prefill_bound=(read + batch_size * kv_count.held(context)) / bandwidth,
        prefill_speedup=Spread.of(
            [one.prefill / run.prefill for one, run in zip(originals, runs, strict=True)]
        ),
        decode=Spread.of([run.decode for run in runs]),
        decode_bound=(read + read_per_step) / bandwidth,
        decode_speedup=Spread.of(
            [one.decode / run.decode for one, run in zip(originals, runs, strict=True)]
        ),
        kv_bytes_counted=kv_bytes,
        kv_bytes_measured=runs[-1].kv_bytes,
        peak_bytes=None if growth is None else weights + growth,
        peak_bound=weights + kv_bytes,
    )


def _variant(name: str, kv_heads: KVHeads, shape: ModelShape, model: PreTrainedModel) -> Variant:
    return Variant(
        name=name,
        n_converted=sum(heads < shape.n_kv_heads for heads in kv_heads),
        kv_heads=kv_heads,
        kv_bytes_per_token=shape.kv_bytes_per_token(kv_heads),
        weight_bytes=weight_bytes(model),
    )


def _machine(loaded: LoadedModel, bandwidth: Bandwidth, load: float | None) -> Machine:
    return Machine(
        device=str(loaded.device),
        name=device_name(loaded.device),
        dtype=str(loaded.dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        attention=str(loaded.model.config._attn_implementation),
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


def _check_positions(model: PreTrainedModel, workload: Workload) -> None:
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    context, n_tokens = max(workload.contexts), workload.n_tokens
    if positions is None or context + n_tokens <= positions:
        return
    room = positions - n_tokens
    cure = f"use --context {room} or less" if room > 0 else "use a smaller --n-tokens"
    raise UserError(
        f"a context of {context} and {n_tokens} decoded tokens exceed the model's {positions} "
        f"positions; {cure}"
    )


def _check_memory(
    device: torch.device, kv_counts: Mapping[str, KVCount], workload: Workload
) -> None:
    """Refuse what cannot work before anything is run; a process that is killed explains nothing."""
    available = available_bytes(device)
    tokens = {setting: setting.context + workload.n_tokens for setting in workload.settings}
    for setting, n_tokens in tokens.items():
        cache = setting.batch_size * max(kv_count.held(n_tokens) for kv_count in kv_counts.values())
        if available is not None and cache > available:
            raise _too_large(setting)


def _too_large(setting: Setting) -> UserError:
    return UserError(
        f"there is not enough memory for a context of {setting.context} with batch size "
        f"{setting.batch_size}; use a smaller --context or --batch-size"
    )
