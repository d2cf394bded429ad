"""A database that cannot be used is answered in one line, in seconds."""

import socket
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import optuna
import pytest
from postgres import Postgres
from sqlalchemy import create_engine, text

from mqasearch.database import schema
from mqasearch.database.connecting import PatientConnection
from mqasearch.errors import DatabaseAwayError, StorageError
from mqasearch.record import storage as storage_module
from mqasearch.record.storage import open_storage, upgrade_storage

CANARY = "s3cr3t-canary"


def fault(url: str, kind: type[Exception] = StorageError, **settings: bool) -> str:
    start = time.monotonic()
    with pytest.raises(kind) as caught:
        open_storage(url, **settings)
    assert time.monotonic() - start < 15
    message = str(caught.value)
    assert "\n" not in message
    assert CANARY not in message
    return message


def test_nobody_listens() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    message = fault(f"postgresql://worker:{CANARY}@127.0.0.1:{port}/studies", DatabaseAwayError)
    assert "refused" in message
    assert f"127.0.0.1:{port}" in message


def test_somebody_listens_and_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        url = f"postgresql://worker:{CANARY}@127.0.0.1:{port}/studies"
        assert "timeout" in fault(url, DatabaseAwayError)


def test_no_such_database(postgres_server: Postgres) -> None:
    assert '"nowhere" does not exist' in fault(postgres_server.address("nowhere"))


def test_a_driver_that_is_not_installed() -> None:
    message = fault(f"postgresql+psycopg2://worker:{CANARY}@127.0.0.1/studies")
    assert message.endswith("pip install psycopg2")


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert "no folder" in fault(f"sqlite:///{tmp_path}/nowhere/study.db")


def test_looking_makes_no_file(tmp_path: Path) -> None:
    assert "no such file" in fault(f"sqlite:///{tmp_path}/study.db", create=False)
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_something_else(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_text("This is the story of a file that was no database. " * 50)
    assert "not a database" in fault(f"sqlite:///{tmp_path}/study.db")


def test_a_read_only_file(tmp_path: Path) -> None:
    open_storage(f"sqlite:///{tmp_path}/study.db").close()
    message = fault(f"sqlite:///file:{tmp_path}/study.db?mode=ro&uri=true")
    assert "readonly" in message
    assert "make it writable" in message


def test_a_standby_server(postgres_server: Postgres, postgres_url: str) -> None:
    open_storage(postgres_url).close()
    name = postgres_url.rpartition("/")[2]
    postgres_server.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    assert "read-only" in fault(postgres_url)
    open_storage(postgres_url, read_only=True).close()


def test_an_empty_database_is_only_made_when_asked(postgres_url: str) -> None:
    message = fault(postgres_url, create=False)
    assert "mqasearch db upgrade --storage postgresql" in message


def test_a_newer_schema_asks_for_a_newer_program(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    storage = open_storage(url)
    with storage.engine.begin() as connection:
        connection.execute(text(f"UPDATE {schema.VERSION_TABLE} SET version_num = '9999'"))
    storage.close()
    message = fault(url)
    assert "newer mqasearch" in message
    assert "pip install --upgrade mqasearch" in message


def test_another_optuna_is_answered_with_the_cure(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    open_storage(url).close()
    with sqlite3.connect(tmp_path / "study.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'v2.6.0.a'")
    connection.close()
    assert fault(url).endswith(f"mqasearch db upgrade --storage {url}")


def test_upgrading_an_empty_database_makes_all_tables(tmp_path: Path, postgres_url: str) -> None:
    for url in (f"sqlite:///{tmp_path}/study.db", postgres_url):
        upgrade_storage(url)
        upgrade_storage(url)
        open_storage(url, create=False).close()


def test_an_optuna_database_gets_our_tables_beside_its_own(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    optuna.create_study(study_name="theirs", storage=url)
    storage = open_storage(url)
    assert [study.study_name for study in storage.optuna.get_all_studies()] == ["theirs"]
    storage.close()
    engine = create_engine(url)
    schema.check(engine)
    engine.dispose()


def test_an_interrupt_in_the_middle_of_a_query_is_not_hidden_by_what_fails_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/study.db")

    def interrupted(*_: object) -> None:
        try:
            raise KeyboardInterrupt
        finally:
            raise sqlite3.ProgrammingError("cannot clean up")

    monkeypatch.setattr(storage.engine.dialect, "do_execute", interrupted)
    with pytest.raises(KeyboardInterrupt), storage.engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    monkeypatch.undo()
    with storage.engine.connect() as connection:
        assert connection.execute(text("SELECT 1")).scalar() == 1
    storage.close()


def test_an_interrupt_wherever_postgresql_is_waited_for_stays_one(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(postgres_url)
    wait = PatientConnection.wait

    def ask() -> int:
        with storage.engine.connect() as connection:
            return int(connection.execute(text("SELECT 1")).scalar_one())

    def n_waits(interrupted: int | None = None) -> int:
        """Of a question on a connection that was kept, and hence is tried before.

        Args:
            interrupted: the wait that is interrupted, with its query on the way.
        """
        storage.engine.dispose()
        assert ask() == 1
        number = -1

        def counted(self: PatientConnection, gen: Any, *args: Any, **options: Any) -> Any:
            nonlocal number
            number += 1
            if number == interrupted:
                next(gen, None)
                raise KeyboardInterrupt
            return wait(self, gen, *args, **options)

        with monkeypatch.context() as patched:
            patched.setattr(PatientConnection, "wait", counted)
            ask()
        return number + 1

    for number in range(n_waits()):
        with pytest.raises(KeyboardInterrupt):
            n_waits(number)
        assert ask() == 1
    storage.close()


def test_a_database_that_is_there_is_opened_without_a_lock(postgres_url: str) -> None:
    """Workers that start at once do not wait for one another, however far the server is."""
    open_storage(postgres_url).close()
    engine = create_engine(postgres_url)
    with engine.connect() as connection:
        connection.execute(text(f"SELECT pg_advisory_xact_lock({storage_module.LOCK})"))
        start = time.monotonic()
        open_storage(postgres_url).close()
        assert time.monotonic() - start < 10
    engine.dispose()


def test_openers_of_an_empty_database_make_it_once(postgres_url: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        opened = list(pool.map(lambda _: open_storage(postgres_url), range(8)))
    for storage in opened:
        assert schema.current(storage.engine) == schema.head()
        storage.close()
