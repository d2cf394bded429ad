"""What is waited for, what is not, and for how long."""

import logging
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from optuna.exceptions import StorageInternalError
from sqlalchemy import exc

from mqasearch.database import patience as patience_module
from mqasearch.database.patience import Patience, is_away, is_passing
from mqasearch.errors import DatabaseAwayError


def from_sqlite(message: str) -> exc.OperationalError:
    return exc.OperationalError("SELECT 1", {}, sqlite3.OperationalError(message))


def from_postgres(message: str) -> exc.OperationalError:
    return exc.OperationalError("SELECT 1", {}, psycopg.OperationalError(message))


def wrapped_by_optuna(error: Exception) -> StorageInternalError:
    wrapper = StorageInternalError("An exception is raised during the commit.")
    wrapper.__cause__ = error
    return wrapper


PASSING = [
    from_sqlite("database is locked"),
    from_sqlite("database or disk is full"),
    from_postgres("server closed the connection unexpectedly"),
    wrapped_by_optuna(from_postgres("the database system is starting up")),
    exc.TimeoutError("QueuePool limit reached"),
]
LASTING = [
    from_sqlite("no such table: trials"),
    from_sqlite("attempt to write a readonly database"),
    wrapped_by_optuna(from_sqlite("no such column: x")),
    exc.ProgrammingError("SELECT 1", {}, psycopg.errors.InsufficientPrivilege("denied")),
    exc.IntegrityError("INSERT", {}, psycopg.errors.UniqueViolation("twice")),
    ValueError("a fault of our own"),
]


def failing(error: Exception, times: float) -> tuple[Callable[[], str], list[int]]:
    calls: list[int] = []

    def operation() -> str:
        calls.append(1)
        if len(calls) <= times:
            raise error
        return "answer"

    return operation, calls


@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_what_may_pass_is_tried_again(error: Exception) -> None:
    operation, calls = failing(error, times=2)
    assert Patience(seconds=30)(operation) == "answer"
    assert len(calls) == 3


@pytest.mark.parametrize("error", LASTING, ids=repr)
def test_what_cannot_pass_fails_at_once(error: Exception) -> None:
    operation, calls = failing(error, times=1)
    assert not is_passing(error)
    with pytest.raises(type(error)):
        Patience(seconds=30)(operation)
    assert len(calls) == 1


def test_patience_ends_and_then_nobody_waits_again_until_the_database_is_back() -> None:
    patience = Patience(seconds=0.3)
    away, calls = failing(from_postgres("connection refused"), times=float("inf"))
    start = time.monotonic()
    with pytest.raises(DatabaseAwayError, match="connection refused") as caught:
        patience(away)
    assert 0.3 <= time.monotonic() - start < 10
    assert "\n" not in str(caught.value)
    before = len(calls)
    with pytest.raises(DatabaseAwayError):
        patience(away)
    assert len(calls) == before + 1
    assert patience(lambda: "answer") == "answer"
    with pytest.raises(DatabaseAwayError):
        patience(away)
    assert len(calls) > before + 2


def test_a_thread_has_all_its_time_whatever_others_have_waited() -> None:
    """A heartbeat may have given up while a mask was being scored: that score is not lost."""
    patience = Patience(seconds=0.3)
    away, _ = failing(from_postgres("connection refused"), times=float("inf"))
    with ThreadPoolExecutor(1) as pool, pytest.raises(DatabaseAwayError):
        pool.submit(patience, away).result()
    soon, calls = failing(from_postgres("connection refused"), times=2)
    assert patience(soon) == "answer"
    assert len(calls) == 3


AWAY = [
    from_postgres("connection refused"),
    from_postgres("FATAL:  the database system is starting up"),
    from_postgres("FATAL:  sorry, too many clients already"),
    from_sqlite("database is locked"),
]
REFUSED = [
    from_postgres('FATAL:  password authentication failed for user "worker"'),
    from_postgres('FATAL:  database "nowhere" does not exist'),
    from_sqlite("unable to open database file"),
    *LASTING,
]


@pytest.mark.parametrize(
    ("error", "passes"), [*((each, True) for each in AWAY), *((each, False) for each in REFUSED)]
)
def test_a_database_that_is_away_is_not_one_that_refuses(error: Exception, passes: bool) -> None:
    assert is_away(error) is passes


def test_a_process_that_was_paused_in_the_middle_has_not_waited() -> None:
    calls: list[int] = []

    def operation() -> str:
        calls.append(1)
        if len(calls) == 1:
            time.sleep(0.5)  # the machine sleeps, and the server gives the connection up
            raise from_postgres("terminating connection due to idle-in-transaction timeout")
        return "answer"

    assert Patience(seconds=0.2)(operation) == "answer"


def test_it_says_what_it_waits_for_but_not_the_statement(caplog: pytest.LogCaptureFixture) -> None:
    operation, _ = failing(from_postgres("connection refused"), times=1)
    with caplog.at_level(logging.WARNING):
        Patience(seconds=30)(operation)
    assert "connection refused" in caplog.text
    assert "SELECT" not in caplog.text


def test_a_process_that_was_told_to_stop_waits_a_few_seconds_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(patience_module, "HURRIED_SECONDS", 0.2)
    patience_module.hurry()

    def away() -> None:
        raise sqlite3.OperationalError("database is locked")

    started = time.monotonic()
    with pytest.raises(DatabaseAwayError):
        Patience(600)(away)
    assert time.monotonic() - started < 30
