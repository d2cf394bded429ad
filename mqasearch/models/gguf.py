"""GGUF files, converted once to the format that everything else reads."""

import contextlib
import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from mqasearch.assets import build_once, cache_dir
from mqasearch.errors import ModelError
from mqasearch.models.fingerprint import file_digest
from mqasearch.models.loading_bars import progress_bars

logger = logging.getLogger(__name__)

_VERSION = 1
"""Counts up whenever the conversion changes what it writes."""


def converted(path: Path) -> Path:
    """The folder in the cache with a GGUF file's model as float32 safetensors, and its tokenizer.

    Keyed by the file's SHA-256. The first call takes some seconds per hundred megabytes; several
    processes may call at once.

    Raises:
        ModelError: not a GGUF file, or of an architecture that transformers does not read.
        AssetError: no space left in the cache folder.
    """
    name = f"{path.stem}-{file_digest(path)[:16]}-v{_VERSION}"
    return build_once(
        cache_dir() / "models" / name,
        lambda folder: _convert(path, folder),
        f"the conversion of {path.name}",
    )


def _convert(path: Path, folder: Path) -> None:
    logger.info("converting %s to safetensors, once", path.name)
    fields = _fields(path)
    try:
        with _silence():
            model = AutoModelForCausalLM.from_pretrained(
                path.parent, gguf_file=path.name, dtype=torch.float32
            )
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except (ValueError, KeyError, RuntimeError, ImportError, NotImplementedError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"transformers cannot read {path.name} ({fields.get('general.architecture')}): {reason}"
        ) from error
    _split_as_trained(tokenizer, str(fields.get("tokenizer.ggml.pre")))
    # The weights are plain now; with a trace of the quantizer left, saving is refused.
    model.hf_quantizer = None  # type: ignore[assignment]
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    with _silence():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _fields(path: Path) -> dict[str, Any]:
    """The metadata that we need of a GGUF file."""
    wanted = ("general.architecture", "tokenizer.ggml.pre")
    try:
        reader = GGUFReader(path)
        return {key: reader.fields[key].contents() for key in wanted if key in reader.fields}
    except (ValueError, IndexError, KeyError) as error:
        raise ModelError(f"{path} is not a GGUF file: {error}") from error


def _split_as_trained(tokenizer: Any, pre: str) -> None:
    """SmolLM's tokenizer takes every digit by itself before anything else.

    transformers knows most of GGUF's names of pre-tokenizers; for this one it falls back to
    GPT-2's, which splits spaces before a digit in another way.
    """
    if pre == "smollm":
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Neither progress bars nor anything else on stderr; one of the bars knows no switch."""
    with progress_bars(False), contextlib.redirect_stderr(io.StringIO()):
        yield
