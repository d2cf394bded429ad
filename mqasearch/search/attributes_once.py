"""An attribute of a study that is written once: of several writers the first one stays.

Optuna has no such operation: it reads, then inserts or updates, so that of two writers the last one
stays, and the first one has read its own value back before.
"""

import json
from functools import partial
from typing import Any, cast

import optuna
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from sqlalchemy import Engine, Table

from mqasearch.results import Patience
from mqasearch.results.insert import insert_if_absent

TABLE = cast(Table, models.StudyUserAttributeModel.__table__)


def record_once(study: optuna.Study, key: str, value: Any) -> None:
    """Write a user attribute unless there is one of that name; read it to know which.

    Args:
        study: in a database, or in this process's memory, which nobody else writes to.
        key: of the attribute.
        value: as JSON can write it.
    """
    storage = getattr(study._storage, "_backend", study._storage)  # behind Optuna's cache
    if not isinstance(storage, RDBStorage):
        study.set_user_attr(key, value)
        return
    patience: Patience = getattr(storage, "patience", Patience())
    row = {"study_id": study._study_id, "key": key, "value_json": json.dumps(value)}
    patience(partial(_insert, storage.engine, row))


def _insert(engine: Engine, row: dict[str, Any]) -> None:
    with engine.begin() as connection:
        insert_if_absent(connection, TABLE, [row])
