"""Load models and their tokenizers by name."""

import contextlib
import inspect
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import errors as hub
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.hub import cached_file

from mqasearch.errors import ModelError
from mqasearch.mask import ModelShape
from mqasearch.models.fingerprint import fingerprint_of
from mqasearch.models.loading_bars import progress_bars
from mqasearch.models.precision import device_of, dtype_of
from mqasearch.models.shape import shape_of
from mqasearch.models.source import EMBEDDED, Source, resolve

logger = logging.getLogger(__name__)

KV_HEADS_KEY = "kv_heads_per_layer"
"""Key in config.json of a model that mqasearch has converted: KV heads per layer, layer 0 first."""

_LOADING_ERRORS = (
    OSError,
    ValueError,
    RuntimeError,
    ImportError,
    KeyError,
    SafetensorError,
    hub.HFValidationError,
)


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model ready to be scored.

    Attributes:
        model: the model in eval mode, on its device.
        tokenizer: the model's tokenizer.
        name: the name that was given to load it.
        fingerprint: fingerprint of the stored weights and the config; the same for every device
            and dtype.
        device: the model's device.
        dtype: dtype of its weights and its KV cache.
        folder: the folder of its files; None = it was made in memory.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    fingerprint: str
    device: torch.device
    dtype: torch.dtype
    folder: Path | None = None

    @property
    def shape(self) -> ModelShape:
        """The sizes that decide the KV cache."""
        return shape_of(self.model, self.dtype)


def load_model(
    name: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> LoadedModel:
    """Load a model for scoring.

    Weights are read from safetensors only, never from pickles.

    Args:
        name: ``smollm2-135m``, a folder, a GGUF file, or a hub id.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N``, ``mps``.
        dtype: ``auto`` (bfloat16 if the hardware computes in it, else float32) or a name.
        revision: for a hub id: branch, tag or commit.
        trust_remote_code: run Python code that comes with the model.

    Raises:
        ModelError: no such model, device or dtype; an incomplete checkpoint; not enough memory.
        AssetError: the embedded model cannot be fetched.
    """
    place = device_of(device)
    precision = dtype_of(dtype, place)
    source = resolve(name)
    config = _config(name, source, revision, trust_remote_code)
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    with _explained(name, source, revision), progress_bars(source.is_hub):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source.location,
            config=config,
            dtype=precision,
            device_map={"": place},
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, in one line
            **options,
        )
    model, loading = loaded
    _check_complete(name, loading)
    with _explained(f"the tokenizer of {name}", source, revision):
        tokenizer = AutoTokenizer.from_pretrained(source.location, **options)
    folder = _folder(source, revision)
    return LoadedModel(
        model=model.eval().requires_grad_(False),
        tokenizer=tokenizer,
        name=name,
        fingerprint=fingerprint_of(folder, model.config, model.generation_config, _own_code(model)),
        device=place,
        dtype=precision,
        folder=folder,
    )


def _own_code(model: PreTrainedModel) -> str:
    """The Python code of the model's module, if it came with the model; else empty."""
    kind = type(model)
    return inspect.getsource(inspect.getmodule(kind) or kind) if is_remote(model) else ""


def is_remote(model: PreTrainedModel) -> bool:
    """Whether a model runs code that came with it."""
    return type(model).__module__.startswith("transformers_modules")


def _check_complete(name: str, loading: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that lacks weights, for which transformers has set random ones."""
    absent = sorted(loading["missing_keys"])
    other = sorted(key if isinstance(key, str) else key[0] for key in loading["mismatched_keys"])
    if absent or other:
        fault = "lacks" if absent else "has in other sizes than its config says"
        raise ModelError(
            f"the checkpoint of {name} {fault} {len(absent or other)} of the model's weights, "
            f"{(absent or other)[0]} among them: fetch it again, or mend its config.json"
        )


def load_shape(
    name: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[str, ModelShape]:
    """A model's type and sizes, read from its config alone; see ``load_model``."""
    source = resolve(name)
    config = _config(name, source, revision, trust_remote_code)
    return config.model_type, shape_of(config, dtype_of(dtype, device_of(device)))


def _config(
    name: str, source: Source, revision: str | None, trust_remote_code: bool
) -> PreTrainedConfig:
    if source.is_hub:
        logger.info("asking the hub for %s", name)
    with _explained(name, source, revision):
        written, _ = PreTrainedConfig.get_config_dict(source.location, revision=revision)
    if KV_HEADS_KEY in written:  # refused before transformers asks whether to trust its code
        raise ModelError(
            f"{name} was converted by mqasearch already: start from the original that its "
            "mask.json names"
        )
    with _explained(name, source, revision):
        config = AutoConfig.from_pretrained(
            source.location, revision=revision, trust_remote_code=trust_remote_code
        )
    assert isinstance(config, PreTrainedConfig)
    if quantization := getattr(config, "quantization_config", None):
        method = dict(quantization).get("quant_method", "some method")
        raise ModelError(
            f"the weights of {name} are quantized ({method}), and only plain ones can be merged: "
            "give the original checkpoint, or a .gguf file, which is turned back into plain weights"
        )
    return config


def _folder(source: Source, revision: str | None) -> Path:
    """The folder of the checkpoint's files; for a hub id, its snapshot, which was downloaded."""
    if not source.is_hub:
        return Path(source.location)
    config = cached_file(source.location, "config.json", revision=revision, local_files_only=True)
    assert config is not None
    return Path(config).parent


@contextlib.contextmanager
def _explained(name: str, source: Source, revision: str | None) -> Iterator[None]:
    """Turn errors of transformers and the hub into one line, and suppress their own warnings."""
    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "transformers")]
    levels = [noisy.level for noisy in loggers]
    for noisy in loggers:
        noisy.setLevel(logging.ERROR)
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ModelError(f"not enough memory on the device for {name}: {_line(error)}") from error
    except _LOADING_ERRORS as error:
        reason = _reason(error, revision) if source.is_hub else None
        raise ModelError(f"cannot load {name}: {reason or _line(error)}") from error
    finally:
        for noisy, level in zip(loggers, levels, strict=True):
            noisy.setLevel(level)


def _reason(error: BaseException, revision: str | None) -> str | None:
    """The hub's reason for an error, and what to do; None if the hub did not cause the error."""
    causes = list(_causes(error))

    def caused_by(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    if caused_by(hub.GatedRepoError):
        return "its owner asks for an agreement: accept it on its hub page, then 'hf auth login'"
    if caused_by(hub.RevisionNotFoundError):
        return f"it has no revision {revision!r} on the hub"
    if caused_by(hub.RepositoryNotFoundError):
        return "the hub has no such model, or it is private: check the id, or 'hf auth login'"
    if caused_by(hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled):
        return (
            "the hub cannot be reached, and the model is not in its cache; "
            f"a folder, a .gguf file and {', '.join(EMBEDDED)} need no hub"
        )
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _line(error: BaseException) -> str:
    """The first line of a message; if it ends in a colon, the whole message in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return " ".join(lines) if lines[0].endswith(":") else lines[0]
