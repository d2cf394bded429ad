"""Latency in a stock engine: each variant is a checkpoint that a process of its own loads.

The original is written and loaded like the others, so that the same code runs them all.
"""

import logging
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

from mqasearch.checkpoint import Checkpoint, convert_checkpoint
from mqasearch.conversion import ConvertibleModel
from mqasearch.engines import (
    ENGINES,
    Engine,
    EngineKind,
    Settings,
    engine_kind,
    engine_python,
)
from mqasearch.errors import ModelError, UserError
from mqasearch.formats import Converted, Format, Options, formats_by_engine
from mqasearch.latency.byte_counts import KVCount, weight_bytes, weight_bytes_read
from mqasearch.latency.machine import available_bytes
from mqasearch.latency.runner import EngineUsed, Run, Runner, Weights, check_memory
from mqasearch.latency.transformers_runner import TRANSFORMERS
from mqasearch.latency.workload import Setting, Workload
from mqasearch.mask import KVHeads
from mqasearch.models import LoadedModel

logger = logging.getLogger(__name__)

_OUTTYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
_MEMORY_SHARE = 0.8  # of the free memory, for all engines; a machine that swaps cannot be measured


def check_engine(name: str, python: Path | None, workload: Workload) -> None:
    """Refuse, before a model is loaded, an engine that cannot run the workload.

    Args:
        name: "transformers", or a name in ``engines.ENGINES``.
        python: the Python that has the engine; None = ``engine_python`` finds it.
        workload: what is to be run.

    Raises:
        UnknownNameError: no such engine.
        UserError: the engine is not installed, or runs one sequence at a time.
    """
    if name == TRANSFORMERS:
        if python is not None:
            raise UserError(f"--engine-python: {TRANSFORMERS} is run by the Python that runs this")
        return
    kind = _kind(name)
    if not kind.batches and max(workload.batch_sizes) > 1:
        raise UserError(f"--batch-size: {name} is asked for one sequence at a time; give 1")
    engine_python(kind, python)


def default_batch_sizes(name: str) -> tuple[int, ...]:
    """The batch sizes that an engine is measured with by default.

    Raises:
        UnknownNameError: no such engine.
    """
    return (1, 4) if name == TRANSFORMERS or _kind(name).batches else (1,)


class EngineRunner(Runner):
    """Checkpoints in a temporary folder, and the engines that have loaded them.

    All engines stay loaded if memory allows; if not, only the engine that runs now is loaded.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        convertible: ConvertibleModel,
        variants: Mapping[str, KVHeads],
        kv_counts: Mapping[str, KVCount],
        workload: Workload,
        engine: str,
        python: Path | None = None,
    ) -> None:
        """Write the checkpoints and start the first engine.

        Raises:
            UnknownNameError: no such engine.
            ModelError: no format that the engine loads can express the model.
            MaskError: KV heads that do not fit the model.
            UserError: the engine is not installed, or cannot load a checkpoint; there is not enough
                memory or room on the disk.
        """
        self._kind, self._python = _kind(engine), python
        self._workload = workload
        self._dtype = str(loaded.dtype).removeprefix("torch.")
        model = convertible.model
        self._tables = weight_bytes(model) - weight_bytes_read(model)
        written = self._format(loaded, convertible, variants)
        check_memory(loaded.device, kv_counts, workload, weight_bytes(model))
        self._place = tempfile.TemporaryDirectory(prefix="mqasearch-latency-")
        self._engines: dict[str, tuple[Engine, float]] = {}
        self.together = False
        try:
            self._checkpoints = self._write(loaded, convertible, variants, written)
            self.together = self._fit_together(loaded.device, kv_counts)
            version = self._engine(next(iter(variants)))[0].version
        except BaseException:
            self.close()
            raise
        self.used = EngineUsed(engine, version, written.name, f"{engine}'s own")

    def weights(self, variant: str) -> Weights:
        held = self._checkpoints[variant].weight_bytes
        return Weights(held, held - self._tables)

    def run(self, variant: str, setting: Setting) -> Run:
        engine, bytes_per_token = self._engine(variant)
        n_tokens = self._workload.n_tokens
        timing = engine.time(setting.context, setting.batch_size, n_tokens)
        n_cached = setting.batch_size * (setting.context + n_tokens)
        return Run(timing.prefill, timing.decode, round(bytes_per_token * n_cached))

    def growth(self, variant: str, setting: Setting) -> int | None:
        """Warm up and return None, as an engine allocates its memory when it starts."""
        self.run(variant, setting)
        return None

    def close(self) -> None:
        for engine, _ in self._engines.values():
            engine.close()
        self._engines.clear()
        self._place.cleanup()

    def _format(
        self,
        loaded: LoadedModel,
        convertible: ConvertibleModel,
        variants: Mapping[str, KVHeads],
    ) -> Format:
        """The format of all variants, after a check that the disk has room for them."""
        for kv_heads in variants.values():
            convertible.check(kv_heads)
        converted = [
            Converted(convertible, kv_heads, loaded.tokenizer, loaded.folder)
            for kv_heads in variants.values()
        ]
        loading = formats_by_engine(converted)
        if self._kind.name not in loading:
            able = [name for name in (TRANSFORMERS, *ENGINES) if name in loading]
            raise ModelError(
                f"engine {self._kind.name!r} loads no format that can express this "
                f"{loaded.model.config.model_type} model with fewer KV heads; engines that do: "
                f"{', '.join(able) or 'none'}"
            )
        written = loading[self._kind.name]
        needed = sum(written.n_bytes(each, self._options(written)) for each in converted)
        folder = tempfile.gettempdir()
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise UserError(
                f"{folder}: {needed / 1e9:.2f} GB are needed for {len(converted)} checkpoints and "
                f"{free / 1e9:.2f} GB are free there; set TMPDIR to a folder on another disk"
            )
        return written

    def _options(self, written: Format) -> Options:
        return Options(outtype=_OUTTYPES[self._dtype] if written.outtypes else None)

    def _write(
        self,
        loaded: LoadedModel,
        convertible: ConvertibleModel,
        variants: Mapping[str, KVHeads],
        written: Format,
    ) -> dict[str, Checkpoint]:
        checkpoints = {}
        for place, (name, kv_heads) in enumerate(variants.items()):
            logger.info("latency: writing %s in format %s", name, written.name)
            checkpoints[name] = convert_checkpoint(
                kv_heads,
                loaded,
                Path(self._place.name, str(place)),
                format=written.name,
                options=self._options(written),
                merge=convertible.merge,
            )
        return checkpoints

    def _engine(self, variant: str) -> tuple[Engine, float]:
        """The running engine that has the variant, and bytes of cache per token in it."""
        if variant not in self._engines:
            if not self.together:
                for engine, _ in self._engines.values():
                    engine.close()
                self._engines.clear()
            logger.info("latency: starting %s with %s", self._kind.name, variant)
            engine = Engine(self._kind.name, self._settings(variant), python=self._python)
            self._engines[variant] = engine, 0.0  # so that close() closes it if the next line fails
            self._engines[variant] = engine, engine.cache_bytes_per_token()
        return self._engines[variant]

    def _settings(self, variant: str) -> Settings:
        folder = self._checkpoints[variant].folder
        return Settings(
            model=str(next(folder.glob("*.gguf"), folder)),
            dtype=self._dtype,
            max_tokens=sequence_tokens(self._workload),
            batch_size=self._workload.largest.batch_size,
            n_threads=torch.get_num_threads(),  # as many as the bandwidth is measured with
            trust_remote_code=True,  # ``convert`` has just written this code
        )

    def _fit_together(self, device: torch.device, kv_counts: Mapping[str, KVCount]) -> bool:
        """Start the first engine, and estimate from its memory whether all others fit too."""
        first, *others = self._checkpoints
        before = available_bytes(device)
        self._engine(first)
        after = available_bytes(device)
        if before is None or after is None:
            return False
        setting = self._workload.largest
        n_tokens = setting.context + self._workload.n_tokens
        cache = setting.batch_size * kv_counts[first].held(n_tokens)  # perhaps not resident yet
        fit = (max(before - after, 0) + cache) * len(others) <= _MEMORY_SHARE * after
        if not fit:
            logger.warning(
                "memory does not hold %d engines at once: each is started anew for its turn",
                len(self._checkpoints),
            )
        return fit


def sequence_tokens(workload: Workload) -> int:
    """Positions that an engine needs: the prefill gives one token, and so does every step."""
    return max(workload.contexts) + workload.n_tokens + 1


def _kind(name: str) -> EngineKind:
    return engine_kind(name, also=(TRANSFORMERS,))
