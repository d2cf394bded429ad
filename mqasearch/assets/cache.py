"""The cache folder, and the one way in which anything gets into it.

A folder of the cache either is there and complete, or is not there. It is built beside its final
place, under a lock that holds between processes, and renamed when it is complete. Whoever is killed
while building leaves a partial folder that the next builder removes.
"""

import contextlib
import errno
import glob
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout
from platformdirs import user_cache_path

from mqasearch.errors import AssetError

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "MQASEARCH_CACHE"
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def cache_dir() -> Path:
    """Where everything that mqasearch downloads or converts is kept.

    ``MQASEARCH_CACHE`` if it is set, else the platform's cache folder. Not created here.
    """
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen).expanduser().absolute()
    return user_cache_path("mqasearch", appauthor=False)


def build_once(folder: Path, build: Callable[[Path], None], what: str) -> Path:
    """``folder``, built first if it is not there.

    Several processes may ask at once: one builds, the others wait for it. When ``build`` is
    interrupted or fails, nothing is left at ``folder``.

    Args:
        folder: the final place, inside the cache folder.
        build: fills an empty folder that it is given.
        what: what is built, for messages.

    Raises:
        AssetError: the cache folder is full or cannot be written.
    """
    if folder.is_dir():
        return folder
    # Named by process: a child of a killed builder may go on writing into the old one for a while.
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    with storage_errors(folder.parent, what):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_name(f".{folder.name}.lock"), what):
            if folder.is_dir():
                return folder
            for left in folder.parent.glob(f".{glob.escape(folder.name)}.*.partial"):
                shutil.rmtree(left, ignore_errors=True)
            try:
                partial.mkdir()
                build(partial)
                _flush(partial)
                partial.rename(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return folder


@contextlib.contextmanager
def storage_errors(folder: Path, what: str) -> Iterator[None]:
    """Turn a full disk and a folder that cannot be written into one line with what to do."""
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
    """The error for a full disk."""
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


def _flush(folder: Path) -> None:
    """Bring every file to the disk, so that the rename never outlives the contents."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
