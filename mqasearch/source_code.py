"""What identifies code: the bytes of our own files, and the versions of others' packages."""

import hashlib
from collections.abc import Iterable
from importlib.metadata import version
from importlib.resources import files
from importlib.resources.abc import Traversable

_PACKAGE = "mqasearch"


def code_digest(parts: Iterable[str], packages: Iterable[str], without: Iterable[str] = ()) -> str:
    """SHA-256 (hex) of some of this package's files, by name and content, and of versions.

    Args:
        parts: files and folders below the package, such as ``conversion`` or
            ``scoring/scorers.py``; a folder stands for all its Python files and for files that
            become such (``.py.txt``).
        packages: packages whose versions count.
        without: files to leave out.
    """
    left_out = set(without)
    digest = hashlib.sha256()
    for name, file in sorted(row for part in parts for row in _sources(part, _at(part))):
        if name not in left_out:
            digest.update(f"{name}\n{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    for package, number in versions_of(packages).items():
        # The build of a package ("+cpu") belongs to the machine, like its processor.
        digest.update(f"{package} {number.partition('+')[0]}\n".encode())
    return digest.hexdigest()


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """Package → the version that is installed."""
    return {package: version(package) for package in packages}


def _at(part: str) -> Traversable:
    return files(_PACKAGE).joinpath(*part.split("/"))


def _sources(name: str, place: Traversable) -> list[tuple[str, Traversable]]:
    if place.is_file():
        return [(name, place)] if name.endswith((".py", ".py.txt")) else []
    return [row for each in place.iterdir() for row in _sources(f"{name}/{each.name}", each)]
