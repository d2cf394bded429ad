"""Reading trials from Optuna's tables in two queries, without an object per row.

Every worker reads every trial of a study, many times while it runs, so this is what a trial costs
most as workers are added. Optuna's own reading takes seven queries and builds and parses each of a
trial's parameters anew.
"""

import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, cast

from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial
from sqlalchemy import (
    ColumnElement,
    Connection,
    Double,
    Row,
    Select,
    String,
    Table,
    literal,
    null,
    select,
    union_all,
)
from sqlalchemy import cast as sql_cast

TRIALS = cast(Table, models.TrialModel.__table__)
PARAMS = cast(Table, models.TrialParamModel.__table__)
USER_ATTRS = cast(Table, models.TrialUserAttributeModel.__table__)
SYSTEM_ATTRS = cast(Table, models.TrialSystemAttributeModel.__table__)
VALUES = cast(Table, models.TrialValueModel.__table__)
INTERMEDIATE = cast(Table, models.TrialIntermediateValueModel.__table__)

NOT_FINITE = {"INF_POS": math.inf, "INF_NEG": -math.inf, "NAN": math.nan}
"""How Optuna stores what SQL has no number for."""


def read_trials(connection: Connection, condition: ColumnElement[bool]) -> list[FrozenTrial]:
    """The trials that ``condition`` on the table of trials selects, in the order of creation."""
    rows = connection.execute(
        select(
            TRIALS.c.trial_id,
            TRIALS.c.number,
            TRIALS.c.state,
            TRIALS.c.datetime_start,
            TRIALS.c.datetime_complete,
        )
        .where(condition)
        .order_by(TRIALS.c.trial_id)
    ).all()
    if not rows:
        return []
    parts: dict[int, list[Row[Any]]] = {row.trial_id: [] for row in rows}
    for part in connection.execute(_parts(select(TRIALS.c.trial_id).where(condition))):
        # A trial made between the two queries is left for the next reading.
        if part.trial_id in parts:
            parts[part.trial_id].append(part)
    return [_trial(row, parts[row.trial_id]) for row in rows]


def _parts(trial_ids: Select[tuple[int]]) -> Any:
    """What belongs to trials, table by table: (part, place, trial, name, text, number)."""

    def part(table: Table, *columns: Any) -> Select[Any]:
        name, place, title, text, number = columns
        return select(
            literal(name).label("part"),
            place.label("place"),
            table.c.trial_id,
            title.label("name"),
            sql_cast(text, String).label("text"),
            sql_cast(number, Double).label("number"),
        ).where(table.c.trial_id.in_(trial_ids))

    nameless = sql_cast(null(), String)
    c, u, s, v, i = PARAMS.c, USER_ATTRS.c, SYSTEM_ATTRS.c, VALUES.c, INTERMEDIATE.c
    return union_all(
        part(PARAMS, "param", c.param_id, c.param_name, c.distribution_json, c.param_value),
        part(USER_ATTRS, "user", u.trial_user_attribute_id, u.key, u.value_json, null()),
        part(SYSTEM_ATTRS, "system", s.trial_system_attribute_id, s.key, s.value_json, null()),
        part(VALUES, "value", v.objective, nameless, v.value_type, v.value),
        part(
            INTERMEDIATE,
            "intermediate",
            i.step,
            nameless,
            i.intermediate_value_type,
            i.intermediate_value,
        ),
    ).order_by("place")


def _trial(row: Any, parts: Sequence[Row[Any]]) -> FrozenTrial:
    params: dict[str, Any] = {}
    distributions: dict[str, BaseDistribution] = {}
    user_attrs: dict[str, Any] = {}
    system_attrs: dict[str, Any] = {}
    values: list[float] = []
    intermediate: dict[int, float] = {}
    for part in parts:
        match part.part:
            case "param":
                distribution = distributions[part.name] = _distribution(part.text)
                params[part.name] = distribution.to_external_repr(part.number)
            case "user":
                user_attrs[part.name] = json.loads(part.text)
            case "system":
                system_attrs[part.name] = json.loads(part.text)
            case "value":
                values.append(NOT_FINITE.get(part.text, part.number))
            case "intermediate":
                intermediate[part.place] = NOT_FINITE.get(part.text, part.number)
    return FrozenTrial(
        number=row.number,
        state=row.state,
        value=None,
        values=values or None,
        datetime_start=_local(row.datetime_start),
        datetime_complete=_local(row.datetime_complete),
        params=params,
        distributions=distributions,
        user_attrs=user_attrs,
        system_attrs=system_attrs,
        intermediate_values=intermediate,
        trial_id=row.trial_id,
    )


@lru_cache(maxsize=4096)
def _distribution(text: str) -> BaseDistribution:
    """Shared by all trials: nobody changes a distribution."""
    return json_to_distribution(text)


def _local(moment: datetime | None) -> datetime | None:
    """Optuna stores naive UTC and shows naive local time."""
    return None if moment is None else moment.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)
