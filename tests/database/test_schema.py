"""Migrations: from nothing, from every released schema, beside Optuna's tables."""

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from optuna.trial import TrialState
from sqlalchemy import Engine, create_engine, event, inspect, select

from mqasearch.database import schema
from mqasearch.database.tables import PREFIX, Base
from mqasearch.errors import StorageError
from mqasearch.record import open_storage, upgrade_storage
from mqasearch.score import Score, ScoreKey
from mqasearch.scores import ScoreStore
from mqasearch.scores.score_rows import score_of
from mqasearch.scores.store import TABLE

DATABASES = Path(__file__).with_name("databases")
REVISIONS = sorted(
    script.revision for script in ScriptDirectory.from_config(schema._config()).walk_revisions()
)
OLD_KEY = ScoreKey(
    model="f" * 64,
    tokenizer="",
    dtype="float32",
    merge="mean",
    calibration="",
    kv_heads=(2, 1, 2),
    task="hellaswag",
    task_version="1.0",
    num_fewshot=0,
    documents="d" * 64,
    seed=0,
    lm_eval="0.4.13",
    code="",
)
"""Of the one score in each committed database, as far as it was written down."""


def restored(revision: str, folder: Path) -> str:
    """A database as that version of mqasearch left it."""
    connection = sqlite3.connect(folder / "old.db")
    connection.executescript((DATABASES / f"r{revision}.sql").read_text())
    connection.close()
    return f"sqlite:///{folder}/old.db"


def test_every_older_schema_has_a_committed_database() -> None:
    assert [f"r{revision}.sql" for revision in REVISIONS[:-1]] == sorted(
        path.name for path in DATABASES.iterdir()
    )


@pytest.mark.parametrize("revision", REVISIONS[:-1])
def test_an_old_database_is_refused_then_upgraded_then_used(revision: str, tmp_path: Path) -> None:
    url = restored(revision, tmp_path)
    with pytest.raises(StorageError, match="older mqasearch") as caught:
        open_storage(url)
    assert str(caught.value).endswith(f"mqasearch db upgrade --storage {url}")
    upgrade_storage(url)
    storage = open_storage(url, create=False)
    with storage.engine.connect() as connection:
        row = connection.execute(select(TABLE)).mappings().one()
    score = score_of(row)
    assert score.values == {"acc": 2 / 3}
    assert score.documents == {"acc": (0.0, 1.0, 1.0)}
    assert {name: row[name] for name in ("model", "task", "documents", "tokenizer", "code")} == {
        name: getattr(OLD_KEY, name) for name in ("model", "task", "documents", "tokenizer", "code")
    }
    study = optuna.load_study(study_name="old.greedy", storage=storage.optuna)
    assert [trial.value for trial in study.get_trials()] == [2 / 3]
    study.optimize(lambda trial: 1.0, n_trials=1)
    assert study.get_trials()[-1].state == TrialState.COMPLETE
    storage.close()


@pytest.mark.parametrize("revision", REVISIONS[:2])
def test_nobody_takes_over_a_score_of_unknown_code(revision: str, tmp_path: Path) -> None:
    url = restored(revision, tmp_path)
    upgrade_storage(url)
    with closing(open_storage(url, create=False)) as storage:
        store = ScoreStore(storage.engine)
        score = Score({"acc": 0.5}, {"acc": 0.1}, 1, 1.0, {"acc": (0.5,)})
        for key in (OLD_KEY, replace(OLD_KEY, tokenizer="t" * 64, code="c" * 64)):
            assert store.get(key) is None
            store.put(key, score)  # beside it
            assert store.get(key) == score
        assert store.document_sets(replace(OLD_KEY, code="new")) == set()


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Engine:
    if request.param == "sqlite":
        return create_engine(f"sqlite:///{tmp_path}/new.db", plugins=["mqasearch"])
    url = request.getfixturevalue("postgres_url")
    return create_engine(url.replace("postgresql:", "postgresql+psycopg:"))


def test_step_by_step_is_the_same_as_at_once_and_as_the_declared_tables(engine: Engine) -> None:
    config = schema._config()
    for revision in REVISIONS:
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, revision)
        assert schema.current(engine) == revision
    schema.check(engine)
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "version_table": schema.VERSION_TABLE,
                "compare_type": True,
                "compare_server_default": False,
            },
        )
        assert compare_metadata(context, Base.metadata) == []
    engine.dispose()


def test_all_our_tables_carry_the_prefix(engine: Engine) -> None:
    schema.upgrade(engine)
    assert all(name.startswith(PREFIX) for name in inspect(engine).get_table_names())
    engine.dispose()


def test_an_interrupted_upgrade_leaves_everything_as_it_was(engine: Engine) -> None:
    def die(_: object) -> None:
        raise KeyboardInterrupt

    config = schema._config()
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, REVISIONS[0])
    before = sorted(inspect(engine).get_table_names())
    event.listen(engine, "commit", die)
    with pytest.raises(KeyboardInterrupt):
        schema.upgrade(engine)
    event.remove(engine, "commit", die)
    assert sorted(inspect(engine).get_table_names()) == before
    assert schema.current(engine) == REVISIONS[0]
    schema.upgrade(engine)
    schema.check(engine)
    engine.dispose()
