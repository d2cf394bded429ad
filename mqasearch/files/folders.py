"""An output folder that is there whole or not at all."""

import contextlib
import errno
import glob
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from mqasearch.errors import UserError

_PLACE_ERRORS = (
    errno.EACCES,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.ENOTEMPTY,
    errno.EPERM,
    errno.EROFS,
)


def check_output(folder: Path, n_bytes: int) -> None:
    """Check that ``folder`` can be written, before anything is written.

    Args:
        folder: must not exist, or be empty.
        n_bytes: number of bytes that will be written.

    Raises:
        UserError: something is there already, the place cannot be written to, or the disk has too
            little room.
    """
    try:
        if _is_there(folder) and not _is_empty_folder(folder):
            raise UserError(f"{folder} exists already; name another folder, or delete it first")
        there = next(parent for parent in folder.absolute().parents if _is_there(parent))
        if not there.is_dir():
            raise UserError(f"{folder}: {there} is a file, not a folder; name another folder")
        free = shutil.disk_usage(there).free
    except OSError as error:
        raise _not_writable(folder, error) from error
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{folder}: {there} cannot be written to; name another folder")
    if n_bytes > free:
        raise UserError(
            f"{folder}: {n_bytes / 1e9:.2f} GB are needed and {free / 1e9:.2f} GB are free there; "
            "free some, or name a folder on another disk"
        )


def _is_there(path: Path) -> bool:
    """Whether anything has that name, including a link to nothing."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _is_empty_folder(path: Path) -> bool:
    """Whether a rename may replace it: it is an empty folder, and not a link to one."""
    return path.is_dir() and not path.is_symlink() and not any(path.iterdir())


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A fresh folder to fill, which becomes ``folder`` at the end of the ``with`` block.

    It stands beside ``folder``, since a rename is atomic only within one disk. Every file is on the
    disk before the rename. An exception removes the fresh folder. A killed process leaves it
    behind, hidden and under another name, until the next process asks for the same ``folder``.

    Raises:
        OSError: the disk is full, or the place cannot be written to.
    """
    folder = folder.absolute()
    with _hidden(folder, "partial") as partial:
        yield partial
        _sync(partial)
        partial.rename(folder)  # replaces an empty folder, never a full one
        _sync_folder(folder.parent)


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """``new_folder`` for a folder that a user named.

    Example:
        >>> with whole_folder(Path("results")) as folder:
        ...     _ = (folder / "a.txt").write_text("a")
        >>> [path.name for path in Path("results").iterdir()]
        ['a.txt']

    Raises:
        UserError: the disk is full, or the place cannot be written to; in one line.
    """
    with _one_line(folder.absolute()), new_folder(folder) as partial:
        yield partial


@contextlib.contextmanager
def temporary_folder(beside: Path) -> Iterator[Path]:
    """A fresh folder on the disk of ``beside``, gone at the end of the ``with`` block.

    A killed process leaves it behind, as it does with ``whole_folder``.

    Raises:
        UserError: the place cannot be written to.
    """
    beside = beside.absolute()
    with _one_line(beside.parent), _hidden(beside, "temporary") as folder:
        yield folder


@contextlib.contextmanager
def _hidden(beside: Path, word: str) -> Iterator[Path]:
    """A fresh hidden folder beside another, removed at the end; removes those of dead processes."""
    prefix = f".{beside.name}.{word}-"
    beside.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(beside.parent, prefix)
    hidden = beside.parent / f"{prefix}{uuid.uuid4().hex}"
    lock = _lock_of(hidden)
    try:
        # Held for longer than the folder exists: it tells others that this process lives.
        with FileLock(lock):
            hidden.mkdir()
            try:
                yield hidden
            finally:
                shutil.rmtree(hidden, ignore_errors=True)
    finally:
        lock.unlink(missing_ok=True)


@contextlib.contextmanager
def _one_line(folder: Path) -> Iterator[None]:
    """Say in one line why nothing can be written to ``folder``."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"{folder}: no space left on the disk; nothing was kept, name another folder"
            ) from error
        if error.errno in _PLACE_ERRORS:
            raise _not_writable(folder, error) from error
        raise


def _not_writable(folder: Path, error: OSError) -> UserError:
    return UserError(f"{folder}: cannot be written ({error.strerror}); name another folder")


def _remove_abandoned(parent: Path, prefix: str) -> None:
    for partial in parent.glob(f"{glob.escape(prefix)}*"):
        if not partial.is_dir():
            continue  # a lock
        try:
            with FileLock(_lock_of(partial), timeout=0):
                shutil.rmtree(partial, ignore_errors=True)
        except Timeout:
            continue  # another process is at work in it
        _lock_of(partial).unlink(missing_ok=True)


def _lock_of(hidden: Path) -> Path:
    return hidden.with_name(f"{hidden.name}.lock")


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":
        return  # Windows cannot open folders
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot do that with a folder
            raise
    finally:
        os.close(descriptor)
