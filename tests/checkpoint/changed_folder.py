"""Changes to a converted folder, for tests that build it again."""

import json
from pathlib import Path
from typing import Any

from mqasearch.checkpoint.reproduce_json import described, read_record

WEIGHTS = "model.safetensors"


def edit_record(folder: Path, **changes: Any) -> None:
    path = folder / "reproduce.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def pretend_other_weights(folder: Path) -> None:
    """Make it look as if other weights had been written: a fault that only building again finds."""
    record = read_record(folder)
    flip_a_byte(folder / WEIGHTS)
    digest = described(folder / WEIGHTS)
    edit_record(folder, files=record["files"] | {WEIGHTS: digest})
