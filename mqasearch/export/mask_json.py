"""Mask JSON: written for serving, and checked when it is read back.

``mask.schema.json`` and ``masks.schema.json`` beside this file are the published schemas. A file
holds either one mask or what ``mqasearch export`` writes, the best mask of each selector.
"""

import json
import logging
import math
from collections.abc import Mapping
from copy import deepcopy
from importlib.resources import files
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import best_match
from referencing import Registry, Resource

from mqasearch.errors import MaskError, unknown_name
from mqasearch.files import write_whole
from mqasearch.mask import KVHeads, LayerMask, ModelShape

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 2
"""Version 2 has ``levels``; files of version 1 are read too."""

READ_VERSIONS = (1, SCHEMA_VERSION)
MAX_MASK_BYTES = 10_000_000


SCHEMAS = ("mask", "masks", "reproduce", "latency")
"""Files that mqasearch writes; the study file's schema is made by ``mqasearch.creation``."""


def schema(name: str) -> dict[str, Any]:
    """A published schema: ``mask``, ``masks``, ``reproduce`` or ``latency``."""
    text = files("mqasearch.export").joinpath(f"{name}.schema.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def validator(name: str) -> Draft202012Validator:
    """A validator of documents by that schema."""
    mask = Resource.from_contents(schema("mask"))
    registry = Registry().with_resource("urn:mqasearch:mask:1", mask)
    return Draft202012Validator(schema(name), registry=registry, format_checker=FormatChecker())


def write_masks(document: Mapping[str, Any], path: Path) -> None:
    """Validate what ``export`` produced, and write it whole or not at all.

    Raises:
        MaskError: the folder cannot be written to.
    """
    kind = "masks" if "masks" in document else "mask"
    validator(kind).validate(document)
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
    except OSError as error:
        raise MaskError(f"{path}: cannot be written: {error.strerror or error}") from None


def read_mask(path: Path, selector: str | None = None) -> dict[str, Any]:
    """Read one mask: the file's only one, the best one, or a given selector's.

    Raises:
        MaskError: unreadable, not a mask JSON, inconsistent, or no such selector.
    """
    chosen = _chosen(_masks(_read(path), path), selector, path)
    check_consistent(chosen, path)
    return chosen


def read_masks(path: Path) -> list[dict[str, Any]]:
    """Read every mask of a file, best first.

    Raises:
        MaskError: unreadable, not a mask JSON, or a mask that is inconsistent.
    """
    masks = _masks(_read(path), path)
    for mask in masks:
        check_consistent(mask, path)
    return masks


def read_front(path: Path) -> tuple[dict[str, Any], list[KVHeads]]:
    """Read the best mask of a file and the KV heads of every mask on its front, most first.

    Raises:
        MaskError: unreadable, not what ``mqasearch export`` writes, or a mask that is inconsistent.
    """
    document = _read(path)
    if "masks" not in document:
        raise MaskError(f"{path}: holds one mask and no front; give what `export` writes")
    best = _masks(document, path)[0]
    check_consistent(best, path)
    for row in document["front"]:
        check_consistent({**row, "model": best["model"]}, path)
    return best, [tuple(row["kv_heads"]) for row in document["front"]]


def checked_mask(document: Mapping[str, object]) -> dict[str, Any]:
    """A copy of a mask JSON that is in memory, as ``read_mask`` would have returned it.

    Raises:
        MaskError: not a mask JSON, or inconsistent.
    """
    where = Path("the mask")
    copy: dict[str, Any] = deepcopy(dict(document))
    _check(copy, "mask", where)
    check_consistent(copy, where)
    return copy


def _masks(document: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    """The masks of a file, best first, each valid by the schema."""
    if "masks" not in document:
        _check(document, "mask", path)
        return [document]
    _check(document, "masks", path)
    masks: list[dict[str, Any]] = document["masks"]
    if not masks:
        raise MaskError(f"{path}: holds no mask; the study had none at its budget yet")
    return masks


def _chosen(masks: list[dict[str, Any]], selector: str | None, path: Path) -> dict[str, Any]:
    if selector is None:
        return masks[0]
    of_selectors = [mask for mask in masks if "study" in mask]
    for mask in of_selectors:  # best first
        if mask["study"]["selector"] == selector:
            return mask
    if not of_selectors:
        raise MaskError(f"{path}: names no selector; leave out selector {selector!r}")
    known = {mask["study"]["selector"] for mask in of_selectors}
    raise MaskError(f"{path}: {unknown_name('selector', selector, known)}")


def check_model(document: Mapping[str, Any], shape: ModelShape, fingerprint: str) -> None:
    """Check that a mask was made for this model.

    Raises:
        MaskError: another number of layers or heads, or other weights.
    """
    model = document["model"]
    for key in ("n_layers", "n_heads", "n_kv_heads"):
        if model[key] != getattr(shape, key):
            raise MaskError(
                f"the mask was made for {model['id']} with {key} {model[key]}, "
                f"this model has {getattr(shape, key)}; use the model it was made for"
            )
    known = model["fingerprint"]
    if known in (None, fingerprint):
        return
    if ":" in fingerprint and ":" not in known:
        logger.warning(
            "the mask was made by an older mqasearch, whose fingerprints of weights were others: "
            "whether it was made for these is not known"
        )
        return
    raise MaskError(
        f"the mask was made for other weights of {model['id']} (fingerprint "
        f"{known[:12]}, this model {fingerprint[:12]}); "
        "use the model it was made for, or search again"
    )


def without_evidence(document: Mapping[str, Any]) -> dict[str, Any]:
    """A mask JSON without the results that were measured on the weights it was exported for."""
    measured = ("scores", "search_scores", "baseline", "delta")
    left = {key: value for key, value in document.items() if key not in measured}
    if "healed" in left:  # keep what asks for the healing
        left["healed"] = {key: left["healed"][key] for key in ("recipe", "text")}
    return left


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_MASK_BYTES:
            raise MaskError(f"{path}: larger than {MAX_MASK_BYTES:,} bytes, not a mask JSON")
        text = path.read_text(encoding="utf-8")
        document = json.loads(text, parse_float=_number, parse_constant=_number)
    except FileNotFoundError:
        raise MaskError(
            f"{path}: no such file; write one with `mqasearch export --study-name NAME -o {path}`"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise MaskError(f"{path}: cannot be read: {error}") from None
    except json.JSONDecodeError as error:
        raise MaskError(
            f"{path}: line {error.lineno}, column {error.colno}: not JSON: {error.msg}"
        ) from None
    except ValueError as error:
        raise MaskError(f"{path}: not a mask JSON: {error}") from None
    except RecursionError:
        raise MaskError(f"{path}: not a mask JSON: nested too deeply") from None
    if not isinstance(document, dict):
        raise MaskError(f"{path}: not a mask JSON: expected an object")
    return document


def _number(text: str) -> float:
    """Read a number with a point or an exponent; 2.0 becomes an integer, as in JSON Schema."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"number {text:.20} is not finite")
    return int(value) if value.is_integer() else value


def _check(document: dict[str, Any], kind: str, path: Path) -> None:
    if (found := document.get("schema_version")) not in READ_VERSIONS or isinstance(found, bool):
        known = " and ".join(map(str, READ_VERSIONS))
        raise MaskError(
            f"{path}: schema_version {found!r:.80}; this mqasearch reads versions {known}"
        )
    try:
        fault = best_match(validator(kind).iter_errors(document))
    except RecursionError:
        raise MaskError(f"{path}: not a mask JSON: nested too deeply") from None
    if fault is not None:
        raise MaskError(f"{path}: {fault.json_path.removeprefix('$.')}: {fault.message:.200}")


def check_consistent(document: Mapping[str, Any], path: Path) -> None:
    """Check that the three ways in which a mask JSON names its layers agree.

    Raises:
        MaskError: they do not agree; the message begins with ``path``.
    """
    mask = LayerMask(tuple(document["mask"]))
    n_layers, n_kv_heads = document["model"]["n_layers"], document["model"]["n_kv_heads"]
    if len(mask) != n_layers or len(document["kv_heads"]) != n_layers:
        raise MaskError(
            f"{path}: mask has {len(mask)} flags and kv_heads {len(document['kv_heads'])} numbers, "
            f"the model {n_layers} layers"
        )
    if list(mask.layers) != document["mqa_layers"]:
        raise MaskError(f"{path}: mask and mqa_layers name different layers")
    reduced = tuple(int(heads < n_kv_heads) for heads in document["kv_heads"])
    if reduced != mask.levels or any(n_kv_heads % heads for heads in document["kv_heads"]):
        raise MaskError(f"{path}: kv_heads does not fit the mask and {n_kv_heads} KV heads a layer")
    levels = document.get("levels")
    if levels is not None and (
        levels != sorted(levels) or any(n >= n_kv_heads or n_kv_heads % n for n in levels)
    ):
        raise MaskError(
            f"{path}: levels {levels} are not ascending divisors of {n_kv_heads} KV heads"
        )
    if levels is not None and (others := {*document["kv_heads"]} - {n_kv_heads, *levels}):
        raise MaskError(
            f"{path}: kv_heads has {', '.join(map(str, sorted(others)))}, which its levels "
            f"{levels} do not have"
        )
