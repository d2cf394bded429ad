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
"""Raised by 1 if the conversion writes something else than before."""


def converted(path: Path) -> Path:
    """The folder in the cache with a GGUF file's model as float32 safetensors, and its tokenizer.

    The folder is keyed by the file's SHA-256. The first call takes some seconds per hundred
    megabytes. Several processes may call at once.

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
    # The weights are not quantized any more, but transformers would refuse to save them if the
    # model or its config still had the quantizer.
    model.hf_quantizer = None  # type: ignore[assignment]
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    with _silence():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _fields(path: Path) -> dict[str, Any]:
    """The metadata of a GGUF file that we need."""
    wanted = ("general.architecture", "tokenizer.ggml.pre")
    try:
        reader = GGUFReader(path)
        return {key: reader.fields[key].contents() for key in wanted if key in reader.fields}
    except (ValueError, IndexError, KeyError) as error:
        raise ModelError(f"{path} is not a GGUF file: {error}") from error


def _split_as_trained(tokenizer: Any, pre: str) -> None:
    """Correct SmolLM's pre-tokenizer, which splits every digit off before anything else.

    transformers knows most of GGUF's names of pre-tokenizers. For this one it falls back to
    GPT-2's, which splits spaces before a digit differently.
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
    """Suppress progress bars and everything else on stderr; one bar cannot be switched off."""
    with progress_bars(False), contextlib.redirect_stderr(io.StringIO()):
        yield
