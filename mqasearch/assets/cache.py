"""The cache folder, and the only way to put anything into it.

A folder of the cache is either complete or absent. It is built beside its final place, under a lock
that holds between processes, and renamed when it is complete. A process that is killed while it
builds leaves a partial folder, which the next builder removes.
"""

import contextlib
import errno
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout
from platformdirs import user_cache_path

from mqasearch.errors import AssetError
from mqasearch.files import new_folder

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "MQASEARCH_CACHE"
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def cache_dir() -> Path:
    """Where everything that mqasearch downloads or converts is kept.

    It is ``MQASEARCH_CACHE`` if that is set, else the platform's cache folder. This function does
    not create it.
    """
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen).expanduser().absolute()
    return user_cache_path("mqasearch", appauthor=False)


def build_once(folder: Path, build: Callable[[Path], None], what: str) -> Path:
    """Return ``folder``; if it is not there, build it first.

    If several processes ask at once, one builds and the others wait for it. If ``build`` is
    interrupted or fails, nothing is left at ``folder``.

    Args:
        folder: the final place, inside the cache folder.
        build: takes an empty folder and fills it.
        what: a name of what is built, for messages.

    Raises:
        AssetError: the cache folder is full or cannot be written.
    """
    if folder.is_dir():
        return folder
    # The name has the process id, as a child of a killed builder may still write into its folder.
    with storage_errors(folder.parent, what):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_name(f".{folder.name}.lock"), what):
            if not folder.is_dir():
                with new_folder(folder) as partial:
                    build(partial)
    return folder


@contextlib.contextmanager
def storage_errors(folder: Path, what: str) -> Iterator[None]:
    """Turn the errors of a full disk or a read-only folder into one line that says what to do."""
    cure = f"set {CACHE_VARIABLE} to a folder on another disk"
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise no_space(folder, what) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise AssetError(
                f"cannot write {what} to the cache folder {folder} ({error.strerror}): {cure}"
            ) from error
        raise


def no_space(folder: Path, what: str) -> AssetError:
    """The error to raise if the disk is full."""
    return AssetError(
        f"no space left in {folder} for {what}: free some, "
        f"or set {CACHE_VARIABLE} to a folder on another disk"
    )


@contextlib.contextmanager
def _locked(path: Path, what: str) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        logger.info("waiting for another process that is preparing %s", what)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
