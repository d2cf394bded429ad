"""What a model's name stands for: the embedded one, a GGUF file, a local folder, or a hub id."""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType

from mqasearch.assets import smollm2_gguf
from mqasearch.errors import ModelError, UnknownNameError
from mqasearch.models.gguf import converted

EMBEDDED: Mapping[str, Callable[[], Path]] = MappingProxyType({"smollm2-135m": smollm2_gguf})
"""Names of the models that need no hub → their GGUF file."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_FORMS = "a hub id (owner/name or name), a folder or a .gguf file"


@dataclass(frozen=True)
class Source:
    """The place where transformers finds a model.

    Attributes:
        location: a folder, or a hub id.
        is_hub: whether it is a hub id.
    """

    location: str
    is_hub: bool


def is_here(name: str) -> bool:
    """Whether ``name`` stands for the embedded model, or a file or folder that exists."""
    return name in EMBEDDED or os.path.exists(_path(name))


def is_hub_id(name: str) -> bool:
    """Whether ``name`` can only stand for a model on the hub."""
    is_path = is_here(name) or name.endswith(".gguf")
    return not is_path and _HUB_ID.fullmatch(name) is not None


def _path(name: str) -> Path:
    """The path that a name may stand for.

    ``os.path`` is used since pathlib raises an error if the user in ``~user`` does not exist.
    """
    return Path(os.path.expanduser(name))


def check_name(name: str) -> None:
    """Refuse a name that can stand for no model. This is quick: nothing is loaded or downloaded.

    Raises:
        UnknownNameError: the name is close to an embedded model's name, but not the same.
        ModelError: the file or folder does not exist or holds no model.
    """
    path = _path(name)
    if name in EMBEDDED:
        return
    if os.path.isdir(path):
        if not (path / "config.json").is_file():
            raise ModelError(f"folder {name} holds no model: it has no config.json")
        return
    if path.suffix == ".gguf":
        if not os.path.isfile(path):
            raise ModelError(f"there is no GGUF file {name}")
        return
    if not _HUB_ID.fullmatch(name):
        raise ModelError(f"there is no model {name!r}: give {', '.join(EMBEDDED)}, {_FORMS}")
    if "/" not in name and get_close_matches(name.lower(), EMBEDDED, n=1, cutoff=0.75):
        raise UnknownNameError("model", name, EMBEDDED, f"or give {_FORMS}")


def resolve(name: str) -> Source:
    """What ``name`` stands for; the embedded model is fetched and a GGUF file converted.

    Raises:
        ModelError: as in ``check_name``, or a GGUF file cannot be read.
        AssetError: the embedded model cannot be fetched.
    """
    check_name(name)
    path = _path(name)
    if name in EMBEDDED:
        return Source(str(converted(EMBEDDED[name]())), is_hub=False)
    if os.path.isdir(path):
        return Source(str(path), is_hub=False)
    if path.suffix == ".gguf":
        return Source(str(converted(path)), is_hub=False)
    return Source(name, is_hub=True)
