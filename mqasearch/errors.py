"""Every error that mqasearch raises on purpose.

::

    MqasearchError
    ├── TransientError          may pass: the same command may succeed later; exit code 75
    │   └── DatabaseAwayError   the database does not answer
    ├── UserError               bad input: one line, exit code 2
    │   ├── SpecError           a study file: every fault at once
    │   ├── UnknownNameError    with "did you mean"
    │   ├── ModelError          a model that cannot be loaded or converted
    │   ├── MaskError           a mask (or mask JSON) that does not fit
    │   ├── StorageError        the database: not there, another schema
    │   │   ├── ReadOnlyError   the database may be read and not written
    │   │   └── NoMaskError     it holds no mask at the budget yet
    │   └── AssetError          offline data that cannot be fetched or unpacked
    └── ScoreError              a score that is not a number: the trial fails
"""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import ClassVar


class MqasearchError(Exception):
    """Base class of all deliberate errors."""

    exit_code: ClassVar[int] = 1


class TransientError(MqasearchError):
    """A fault that may pass: the same command may succeed later. The message is one line."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h


class DatabaseAwayError(TransientError):
    """The database does not answer, for now."""


class UserError(MqasearchError):
    """Bad input. The message is one line: what is wrong, where, and what to do instead."""

    exit_code = 2


class SpecError(UserError):
    """A study file with one or more faults.

    Attributes:
        faults: one line each, in the order of the file.
    """

    def __init__(self, where: str, faults: Iterable[str]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(f"{where}: {fault}" for fault in self.faults))


class UnknownNameError(UserError):
    """A name that is not in a list of known names."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        self.name = name
        super().__init__(unknown_name(kind, name, known, hint))


class ModelError(UserError):
    """A model that cannot be loaded, or whose attention cannot be converted."""


class MaskError(UserError):
    """A mask, or a mask JSON, that does not fit the model or is malformed."""


class StorageError(UserError):
    """A database that cannot be used as it is."""


class ReadOnlyError(StorageError):
    """A database that may be read and not written."""


class NoMaskError(StorageError):
    """A study that has no scored mask at its budget yet."""


class AssetError(UserError):
    """Offline data (model or benchmark) that cannot be fetched, verified or unpacked."""


class ScoreError(MqasearchError):
    """A score that is NaN or infinite.

    It fails the trial. It ends the study if the original or too many masks in a row have such a
    score.
    """


def unknown_name(kind: str, name: str, known: Iterable[str], hint: str = "") -> str:
    """One line for an unknown name: the nearest known one if any is near, then the whole list."""
    names = sorted(known)
    near = get_close_matches(name, names, n=1, cutoff=0.6)
    guess = f"did you mean {near[0]!r}? " if near else ""
    line = f"unknown {kind} {name!r}: {guess}known: {', '.join(names)}"
    return f"{line}; {hint}" if hint else line
