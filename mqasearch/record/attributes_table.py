"""Optuna's table of the attributes of studies, used for what Optuna's calls cannot do.

Optuna's calls read and write attributes one by one, each in a transaction of its own. If two
processes write, the last one wins, so a change may be lost.
"""

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from optuna.storages import BaseStorage
from sqlalchemy import (
    Column,
    Engine,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    select,
    update,
)

from mqasearch.database import insert_if_absent
from mqasearch.record.optuna_storage import SharedStorage

TABLE = Table(
    "study_user_attributes",
    MetaData(),
    Column("study_user_attribute_id", Integer, primary_key=True),
    Column("study_id", Integer),
    Column("key", String(512)),
    Column("value_json", Text),
    UniqueConstraint("study_id", "key"),
)
"""The table as Optuna makes it since version 3."""

Change = Callable[[Any], Any]
"""Takes an attribute's value and returns the new one. It must return its own result unchanged,
because a transaction whose answer was lost is made again."""


def record_once(storage: BaseStorage, study_id: int, key: str, value: Any) -> None:
    """Write a user attribute of a study unless it exists; the caller must read which value it has.

    Args:
        storage: a database, or this process's memory, which nobody else writes to.
        study_id: Optuna's number of the study.
        key: the attribute's key.
        value: a value that JSON can hold.
    """
    if not isinstance(storage, SharedStorage):
        storage.set_study_user_attr(study_id, key, value)
        return
    row = {"study_id": study_id, "key": key, "value_json": json.dumps(value)}
    storage.patience(partial(_insert, storage.engine, row))


def _insert(engine: Engine, row: dict[str, Any]) -> None:
    with engine.begin() as connection:
        insert_if_absent(connection, TABLE, [row])


def change_together(
    storage: BaseStorage, studies: Sequence[int], key: str, change: Change
) -> list[Any]:
    """Change a user attribute of several studies, in all or none; studies without it are left out.

    Args:
        storage: a database, or this process's memory, which nobody else writes to.
        studies: Optuna's numbers of the studies.
        key: the attribute's key.
        change: is called once for each study, and again if the transaction is repeated.

    Returns:
        The new values, sorted by the number of the study.
    """
    if not studies:
        return []
    if isinstance(storage, SharedStorage):
        return storage.patience(partial(_change, storage.engine, sorted(studies), key, change))
    values = []
    for study in sorted(studies):
        if key in (attributes := storage.get_study_user_attrs(study)):
            values.append(change(attributes[key]))
            storage.set_study_user_attr(study, key, values[-1])
    return values


def _change(engine: Engine, studies: Sequence[int], key: str, change: Change) -> list[Any]:
    mine = TABLE.c.key == key
    query = (
        select(TABLE.c.study_id, TABLE.c.value_json)
        .where(TABLE.c.study_id.in_(studies), mine)
        .order_by(TABLE.c.study_id)  # so that all processes lock in the same order
        .with_for_update()
    )
    values = []
    with engine.begin() as connection:
        for row in connection.execute(query).all():
            values.append(change(json.loads(row.value_json)))
            written = update(TABLE).where(TABLE.c.study_id == row.study_id, mine)
            connection.execute(written.values(value_json=json.dumps(values[-1])))
    return values
