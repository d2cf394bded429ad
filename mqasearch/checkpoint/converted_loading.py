"""Load converted folders with mqasearch's and transformers' code, not with the folder's code."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from mqasearch.errors import ModelError, UserError
from mqasearch.families import COMPACT_SUFFIX, FAMILIES
from mqasearch.formats import compact_classes
from mqasearch.models import KV_HEADS_KEY, device_of, dtype_of, progress_bars

_NEMOTRON = "nemotron-nas"
_NOT_OF_LLAMA = ("architectures", "auto_map", "block_configs", "model_type")
"""Keys of a ``nemotron-nas`` config that a Llama config lacks or uses differently."""


def load_converted(
    folder: Path, *, device: str = "cpu", dtype: str | None = None, attention: str | None = None
) -> PreTrainedModel:
    """The model of a folder that ``convert`` wrote for transformers, in eval mode.

    Args:
        folder: a folder in format ``hf``, ``expanded`` or ``nemotron-nas``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N``, ``mps``.
        dtype: ``auto``, ``float32``, ``bfloat16``, ``float16``; None = the dtype in the folder.
        attention: transformers' ``attn_implementation``; None = its choice.

    Raises:
        UserError: the folder is not ours, or in a format that transformers does not load.
        ModelError: incomplete weights, or no such device or dtype.
    """
    place = device_of(device)
    precision = "auto" if dtype is None else dtype_of(dtype, place)
    written = _config(folder)
    kind, config = _class_and_config(folder, written)
    options: dict[str, Any] = {} if attention is None else {"attn_implementation": attention}
    try:
        with progress_bars(False):
            loaded: Any = kind.from_pretrained(
                folder,
                config=config,
                dtype=precision,
                device_map={"": place},
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, in one line
                **options,
            )
    except torch.OutOfMemoryError as error:
        raise ModelError(f"not enough memory on {place} for {folder}") from error
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"cannot load {folder}: {reason}") from error
    model, loading = loaded
    if gaps := sorted(map(str, {*loading["missing_keys"], *loading["mismatched_keys"]})):
        raise ModelError(
            f"{folder} lacks {len(gaps)} of the model's weights, or has them in other sizes, "
            f"{gaps[0]} among them: convert it again"
        )
    model.eval()
    assert isinstance(model, PreTrainedModel)
    return model


def _config(folder: Path) -> dict[str, Any]:
    """config.json of a folder of ours."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: give what `mqasearch convert` wrote")
    if not (folder / "mask.json").is_file():
        raise UserError(
            f"{folder} is no folder that `mqasearch convert` wrote: it has no mask.json; "
            "transformers' from_pretrained loads other models"
        )
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _not_for_transformers(folder) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / 'config.json'}: cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise UserError(f"{folder / 'config.json'}: not a model's config: expected an object")
    return config


def _not_for_transformers(folder: Path) -> UserError:
    return UserError(
        f"{folder} was written for another program than transformers: load what "
        f"`mqasearch convert --format hf` writes, or `expanded` or `{_NEMOTRON}`"
    )


def _class_and_config(
    folder: Path, written: Mapping[str, Any]
) -> tuple[type[PreTrainedModel] | type[AutoModelForCausalLM], PreTrainedConfig]:
    model_type = str(written.get("model_type"))
    original = model_type.removesuffix(COMPACT_SUFFIX)
    if model_type != original and original in FAMILIES and KV_HEADS_KEY in written:
        config_class, model_class = compact_classes(original)
        return model_class, config_class.from_dict(dict(written))
    if model_type == _NEMOTRON:
        config_class, model_class = compact_classes("llama")
        return model_class, config_class.from_dict(_as_llama(written))
    if model_type in FAMILIES:
        config = AutoConfig.for_model(**written)
        assert isinstance(config, PreTrainedConfig)
        return AutoModelForCausalLM, config
    raise _not_for_transformers(folder)


def _as_llama(written: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a ``nemotron-nas`` model as that of a Llama with KV heads per layer."""
    n_heads = written["num_attention_heads"]
    groups = [block["attention"]["n_heads_in_group"] for block in written["block_configs"]]
    kept = {key: value for key, value in written.items() if key not in _NOT_OF_LLAMA}
    return kept | {KV_HEADS_KEY: [n_heads // group for group in groups]}
