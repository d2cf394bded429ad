"""``reproduce.json``: everything that decided the bytes of a converted folder, and their digests.

It has no time stamp except that in the mask JSON, which is the same when a folder is built again.
"""

import hashlib
import json
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jsonschema.exceptions import best_match
from transformers.utils.hub import extract_commit_hash

from mqasearch import __version__
from mqasearch.errors import UserError
from mqasearch.export import check_consistent, validator
from mqasearch.formats import Format, Options
from mqasearch.merging import Place
from mqasearch.models import LoadedModel, is_hub_id
from mqasearch.scoring import tokenizer_digest
from mqasearch.source_code import code_digest, versions_of

FILE = "reproduce.json"
SCHEMA_VERSION = 1
MAX_RECORD_BYTES = 20_000_000
_CARD = "README.md"
_DECIDES = ("kv_heads", "dtype", "merge", "refit", "calibration", "healed")
"""Keys of a mask JSON that decide the bytes; the rest is evidence."""
_PACKAGES = (
    "gguf",
    "lm_eval",
    "numpy",
    "safetensors",
    "scipy",
    "tokenizers",
    "torch",
    "transformers",
)
_CODE = {
    "models": ("models", "assets"),
    "families": ("families", "mask.py"),
    "merges and calibration": ("conversion", "merging", "scoring/scorers.py"),
    "calibration texts": ("tasks",),
    "healing": ("healing", "heal_recipe.py", "checkpoint/healed_mask.py"),
    "formats": ("checkpoint/convert.py", "export/mask_json.py", "formats"),
}
"""What it does → our own code that decides the bytes."""


def write_record(
    folder: Path,
    document: Mapping[str, Any],
    loaded: LoadedModel,
    written: Format,
    options: Options,
    places: Mapping[str, Place],
) -> None:
    """Write ``reproduce.json`` into a folder that already has all other files.

    Args:
        folder: the folder with the format's files, the mask JSON and the card.
        document: the mask JSON in the folder.
        loaded: the original.
        written: the format of the checkpoint.
        options: the options that it was written with.
        places: part of the calibration, or the healing → where it was computed.
    """
    of_mask = document["model"]
    # for a model that was loaded from the hub, use its hub id, not the place in the mask
    is_fetched = is_hub_id(loaded.name)
    is_named = not is_fetched or loaded.name == of_mask["id"]
    record = {
        "schema_version": SCHEMA_VERSION,
        "source": {
            "id": loaded.name if is_fetched else of_mask["id"],
            "revision": of_mask.get("revision") if is_named else None,
            "commit": _commit(loaded),
            "fingerprint": loaded.fingerprint,
            "tokenizer": tokenizer_digest(loaded.tokenizer),
        },
        "mask": document,
        "format": written.name,
        "outtype": options.outtype or next(iter(written.outtypes), None),
        "max_shard_bytes": options.max_shard_bytes,
        "computed": {
            "processor": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
            "calibration": {part: asdict(place) for part, place in sorted(places.items())},
        },
        "versions": {
            "mqasearch": __version__,
            "python": platform.python_version(),
            **versions_of(_PACKAGES),
        },
        "code": {part: code_digest(files, ()) for part, files in _CODE.items()},
        "files": {name: described(folder / name) for name in _names(folder)},
    }
    validator("reproduce").validate(record)
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    (folder / FILE).write_text(text, encoding="utf-8")


def _commit(loaded: LoadedModel) -> str | None:
    """A hub model's commit, which is in the name of its files' folder; None for other models."""
    if loaded.folder is None:
        return None
    file = str(loaded.folder / "config.json")
    commit: str | None = extract_commit_hash(file, None)
    return commit


def _names(folder: Path) -> list[str]:
    """Paths of the folder's files within it, without hidden files, the card and the record."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    names = (path.as_posix() for path in paths if not path.name.startswith("."))
    return sorted(name for name in names if name not in (FILE, _CARD))


def described(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file, which is read for this."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def read_record(folder: Path) -> dict[str, Any]:
    """Read what ``write_record`` wrote.

    Raises:
        UserError: the folder is not a conversion of ours or is from an older mqasearch, or the
            file is broken.
    """
    path = folder / FILE
    if not path.is_file():
        raise UserError(_why_absent(folder))
    try:
        if path.stat().st_size > MAX_RECORD_BYTES:
            raise UserError(f"{path}: larger than {MAX_RECORD_BYTES:,} bytes, no {FILE} of ours")
        record = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}: line {error.lineno}, column {error.colno}: not JSON: {error.msg}"
        ) from None
    except RecursionError:
        raise UserError(f"{path}: nested too deeply, no {FILE} of ours") from None
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    return _checked(record, path)


def _checked(record: Any, path: Path) -> dict[str, Any]:
    found = record.get("schema_version") if isinstance(record, dict) else None
    if found != SCHEMA_VERSION:
        raise UserError(
            f"{path}: schema_version {found!r:.80}; this mqasearch reads version {SCHEMA_VERSION}"
        )
    fault = best_match(validator("reproduce").iter_errors(record))
    if fault is not None:
        raise UserError(f"{path}: {fault.json_path.removeprefix('$.')}: {fault.message:.200}")
    check_consistent(record["mask"], path)
    checked: dict[str, Any] = record
    return checked


def _why_absent(folder: Path) -> str:
    if not folder.is_dir():
        return f"there is no folder {folder}: give what `mqasearch convert` wrote"
    if (folder / "mask.json").is_file():
        return (
            f"{folder} has no {FILE}: an older mqasearch wrote it; convert its mask again: "
            f"mqasearch convert {folder / 'mask.json'} NEW_FOLDER"
        )
    return f"{folder} is no folder that `mqasearch convert` wrote: it has no {FILE}"


def differing_inputs(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The inputs in which two records differ, one line each."""
    before, after = dict(_flat(_inputs(then))), dict(_flat(_inputs(now)))
    lines = []
    for key in sorted(before.keys() | after.keys()):
        old, new = before.get(key), after.get(key)
        if old != new:
            lines.append(f"{key}: {_short(old)} then, {_short(new)} now")
    return lines


def _inputs(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record without its results, the mask's evidence and the source's place."""
    kept = {key: value for key, value in record.items() if key != "files"}
    source, mask = record["source"], record["mask"]
    kept["source"] = {key: source[key] for key in ("fingerprint", "tokenizer")}
    kept["mask"] = {key: mask[key] for key in _DECIDES if key in mask}
    if "healed" in mask:  # without the facts of how it went
        kept["mask"]["healed"] = {key: mask["healed"][key] for key in ("recipe", "text")}
    return kept


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        yield path, value
        return
    for key, inner in value.items():
        yield from _flat(inner, f"{path}.{key}" if path else str(key))


def _short(value: Any) -> str:
    if value is None:
        return "absent"
    text = value if isinstance(value, str) else json.dumps(value)
    is_digest = len(text) >= 64 and " " not in text
    return text[:12] if is_digest else text[:80]
