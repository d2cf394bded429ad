"""The small files in folders that transformers loads."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def stock_config(model: PreTrainedModel) -> dict[str, Any]:
    """config.json of the original, without entries that are valid only on the original machine."""
    config: dict[str, Any] = json.loads(model.config.to_json_string(use_diff=True))
    config.pop("_name_or_path", None)  # a path of this machine
    config.pop("auto_map", None)  # the original's own code is not copied
    stock = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model.config.model_type)
    config["architectures"] = [stock or type(model).__name__]
    config["dtype"] = str(model.dtype).removeprefix("torch.")
    return config


def write_config(folder: Path, model: PreTrainedModel, config: dict[str, Any]) -> None:
    """Write config.json and, if the original has one, generation_config.json."""
    if model.generation_config is not None:
        text = model.generation_config.to_json_string()
        (folder / "generation_config.json").write_text(text, encoding="utf-8")
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")


def is_tied(model: PreTrainedModel) -> bool:
    """Whether the output projection is the table of token embeddings; the config is not asked."""
    untyped: Any = model
    return untyped.get_output_embeddings().weight is untyped.get_input_embeddings().weight


def template(name: str) -> str:
    """Python code that is copied into folders, by its name in ``modeling/``."""
    folder = files("mqasearch.formats").joinpath("modeling")
    return folder.joinpath(f"{name}.py.txt").read_text(encoding="utf-8")
