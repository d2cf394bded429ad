"""A signal may come at any line of ours or of SQLAlchemy: no lock, no connection stays held."""

import gc
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.pool import QueuePool

from mqasearch.database import Patience
from mqasearch.interruption import postpone
from mqasearch.record import open_storage
from mqasearch.scores.claims import Claims
from mqasearch.scores.store import ScoreStore

STRIDE = 13


class Stop(KeyboardInterrupt):
    """What a signal's handler raises."""


def interrupted(operation: Callable[[], object], at: int) -> tuple[int, BaseException | None]:
    """Interrupt an operation at its line number ``at``; how many there were, and what it raised."""
    n_lines = 0

    def trace(_frame: object, _event: str, _argument: object) -> Any:
        nonlocal n_lines
        n_lines += 1
        if n_lines == at and not postpone(stop := Stop()):
            sys.settrace(None)
            raise stop
        return trace

    gc.disable()  # Python drops what is raised in a finalizer of some earlier test's garbage
    try:
        sys.settrace(trace)
        operation()
    except BaseException as error:
        return n_lines, error
    finally:
        sys.settrace(None)
        gc.enable()
    return n_lines, None


def is_locked(file: Path) -> bool:
    connection = sqlite3.connect(file, timeout=0, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError:
        return True
    finally:
        connection.close()
    return False


@pytest.mark.long
def test_an_interrupted_claim_leaves_nothing_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mqasearch.database.connecting.SQLITE_BUSY_SECONDS", 0.1)
    storage = open_storage(f"sqlite:///{tmp_path}/study.db")
    claims = Claims(storage.engine, ScoreStore(storage.engine), Patience(0.1))

    def operation() -> None:
        claims.claim("digest")
        claims.release("digest")

    pool = storage.engine.pool
    assert isinstance(pool, QueuePool)
    operation()
    n_lines, _ = interrupted(operation, at=0)
    assert n_lines > 1000
    for at in range(1, n_lines, STRIDE):
        reached, error = interrupted(operation, at)
        assert isinstance(error, Stop) or reached < at, at
        assert pool.checkedout() == 0, at
        assert not is_locked(tmp_path / "study.db"), at
    storage.close()
