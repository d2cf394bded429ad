"""An attribute of several studies changed at once: all of them or none, and no change is lost.

Optuna reads and writes attributes one by one, each in a transaction of its own.
"""

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._rdb import models
from sqlalchemy import Engine, Table, select, update

from mqasearch.results import Patience

TABLE = cast(Table, models.StudyUserAttributeModel.__table__)

Change = Callable[[Any], Any]
"""From an attribute's value to its new one. Given what it has made itself, it changes nothing: a
transaction whose answer was lost is made again."""


def change_together(
    storage: BaseStorage, studies: Sequence[int], key: str, change: Change
) -> list[Any]:
    """Change a user attribute of several studies; those that lack it are left out.

    Args:
        storage: a database, or this process's memory, which nobody else writes to.
        studies: Optuna's numbers of them.
        key: of the attribute.
        change: is called once a study, and again if the transaction is.

    Returns:
        The new values, by the number of the study.
    """
    if not studies:
        return []
    backend = getattr(storage, "_backend", storage)  # behind Optuna's cache
    if isinstance(backend, RDBStorage):
        patience: Patience = getattr(backend, "patience", Patience())
        return patience(partial(_change, backend.engine, sorted(studies), key, change))
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
        .order_by(TABLE.c.study_id)  # whoever else does so locks in the same order
        .with_for_update()
    )
    values = []
    with engine.begin() as connection:
        for row in connection.execute(query).all():
            values.append(change(json.loads(row.value_json)))
            written = update(TABLE).where(TABLE.c.study_id == row.study_id, mine)
            connection.execute(written.values(value_json=json.dumps(values[-1])))
    return values
