"""The SQL database that workers share: its URL, engine, tables, migrations, retries."""

from mqasearch.database import schema
from mqasearch.database.clock import seconds_now, seconds_started
from mqasearch.database.connecting import engine_settings
from mqasearch.database.database_url import for_optuna, hidden, parse, sqlite_file
from mqasearch.database.insert import insert_if_absent
from mqasearch.database.patience import Patience, is_away, one_line
from mqasearch.database.read_only import for_reading, reads_only
from mqasearch.database.tables import ClaimRow, ScoreRow, TaskRow, WorkerRow

__all__ = [
    "ClaimRow",
    "Patience",
    "ScoreRow",
    "TaskRow",
    "WorkerRow",
    "engine_settings",
    "for_optuna",
    "for_reading",
    "hidden",
    "insert_if_absent",
    "is_away",
    "one_line",
    "parse",
    "reads_only",
    "schema",
    "seconds_now",
    "seconds_started",
    "sqlite_file",
]
