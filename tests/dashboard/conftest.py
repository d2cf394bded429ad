"""The sample studies in storages, and a server that serves them."""

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import optuna
import pytest
from dashboard.sample_studies import fill
from optuna.storages import BaseStorage

from mqasearch.dashboard.guard import Guard
from mqasearch.dashboard.server import open_server
from mqasearch.database import Patience
from mqasearch.record import open_storage


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(level)


@pytest.fixture
def memory() -> BaseStorage:
    """The sample studies, in memory."""
    storage = optuna.storages.InMemoryStorage()
    fill(storage)
    return storage


@pytest.fixture(scope="session")
def _filled_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dashboard") / "filled.db"
    storage = open_storage(f"sqlite:///{path}")
    fill(storage.optuna)
    storage.close()
    return path


@pytest.fixture
def sqlite_url(_filled_file: Path, tmp_path: Path) -> str:
    """A database of the sample studies."""
    shutil.copy(_filled_file, tmp_path / "study.db")
    return f"sqlite:///{tmp_path}/study.db"


@pytest.fixture
def shared(sqlite_url: str) -> Iterator[BaseStorage]:
    """The same, open as the dashboard opens it."""
    storage = open_storage(sqlite_url, read_only=True, patience=Patience(1))
    yield storage.optuna
    storage.close()


@contextmanager
def _serving(app: Guard, host: str = "127.0.0.1") -> Iterator[str]:
    server = open_server(app, host, 0)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server.url
    finally:
        server.stop()
        thread.join()


@pytest.fixture
def serving() -> Callable[..., AbstractContextManager[str]]:
    """A function that serves an application on a free port while a block runs; gives the URL."""
    return _serving
