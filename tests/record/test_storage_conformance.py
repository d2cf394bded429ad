"""Optuna's own suite for storages, run on ours as a study sees it: behind Optuna's cache.

A database is made once; each test finds it without studies, as the suite expects.
"""

import gc
import warnings
from collections.abc import Iterator

import pytest
from optuna.storages import BaseStorage, get_storage
from optuna.testing.pytest_storages import StorageTestCase
from postgres import Postgres

from mqasearch.record.storage import Storage, open_storage


@pytest.fixture(scope="module")
def on_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storage]:
    opened = open_storage(f"sqlite:///{tmp_path_factory.mktemp('db')}/study.db")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def on_postgres(postgres_server: Postgres) -> Iterator[Storage]:
    opened = open_storage(postgres_server.new_database())
    yield opened
    opened.close()


def emptied(opened: Storage) -> BaseStorage:
    for study in opened.optuna.get_all_studies():
        opened.optuna.delete_study(study._study_id)
    return get_storage(opened.optuna)


class TestOnSqlite(StorageTestCase):
    @pytest.fixture
    def storage(self, on_sqlite: Storage) -> BaseStorage:
        return emptied(on_sqlite)


class TestOnPostgres(StorageTestCase):
    @pytest.fixture
    def storage(self, on_postgres: Storage) -> BaseStorage:
        return emptied(on_postgres)

    def test_pickle_storage(self, storage: BaseStorage) -> None:
        super().test_pickle_storage(storage)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()  # nobody closes the storage that came out of the pickle
