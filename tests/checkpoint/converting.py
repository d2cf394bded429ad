"""A tiny original on the disk and masks for it, to convert and to build again."""

import json
from pathlib import Path
from typing import Any

from mqasearch.checkpoint.convert import convert_checkpoint
from mqasearch.export import read_mask
from mqasearch.models import load_model
from tests.tasks.small_tasks import small_tokenizer
from tests.tiny import tiny_model

KV_HEADS = (1, 4, 2)
CALIBRATION = {
    "digest": "",
    "tasks": [{"name": "choice", "num_fewshot": 0}, {"name": "rolling", "num_fewshot": 0}],
    "n_tokens": 200,
    "seed": 0,
}


def original(folder: Path, model_type: str = "llama", *, seed: int = 0) -> Path:
    """A random model with its tokenizer, as transformers saves them."""
    tiny_model(model_type, seed=seed).save_pretrained(folder)
    small_tokenizer().save_pretrained(folder)
    return folder


def mask_for(folder: Path, path: Path, merge: dict[str, Any], **changes: object) -> Path:
    """A mask JSON of ``original(folder)``, written to ``path``."""
    loaded = load_model(str(folder), device="cpu", dtype="float32")
    plain = path.with_name(f"plain-for-{path.name}")
    convert_checkpoint(KV_HEADS, loaded, plain)
    document = read_mask(plain / "mask.json") | {"merge": merge}
    if merge["name"] == "aligned" or merge.get("refit"):
        document["calibration"] = CALIBRATION
    path.write_text(json.dumps(document | changes))
    return path
