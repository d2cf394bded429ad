"""The documented roles of PostgreSQL: enough for the work, and no more."""

from pathlib import Path

import psycopg
import pytest
from postgres import Postgres
from studies_on_fake import run_study, scoring_of, spec_of, studies_of

from mqasearch.creation import create_studies
from mqasearch.errors import StorageError
from mqasearch.record.storage import open_storage
from mqasearch.scoring import FakeScorer
from mqasearch.study import compare, find_studies
from mqasearch.worker import NO_LIMITS, Watcher, work_with

ROLES = Path(__file__).parents[2] / "dashboards" / "roles.sql"
SCORER = FakeScorer(5)
SPEC = spec_of(model="fake:5", selectors=["greedy", {"name": "random", "n_trials": 4}])


@pytest.fixture(scope="module")
def database(postgres_server: Postgres) -> str:
    """A database with a study and the roles, and a login of each kind."""
    url = postgres_server.new_database()
    storage = open_storage(url)
    create_studies(storage.optuna, SPEC, SCORER.shape)
    storage.close()
    name = url.rpartition("/")[2]
    for _ in range(2):  # it may be run again
        postgres_server.execute(ROLES.read_text(), name)
    postgres_server.execute("CREATE ROLE worker_1 LOGIN IN ROLE mqasearch_worker")
    postgres_server.execute("CREATE ROLE viewer_1 LOGIN IN ROLE mqasearch_dashboard")
    return name


def test_a_worker_can_do_its_work(postgres_server: Postgres, database: str) -> None:
    storage = open_storage(postgres_server.address(database, "worker_1"), create=False)
    studies = find_studies(storage.optuna, SPEC.name)
    work_with(scoring_of(SCORER), storage, studies, NO_LIMITS, Watcher())
    assert [row.confirmed for row in compare(studies_of(storage))]
    storage.close()


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE mine (x int)",
        "ALTER TABLE mqasearch_score ADD COLUMN x int",
        "DROP TABLE mqasearch_score",
        "UPDATE mqasearch_score SET seconds = 0",
        "DELETE FROM mqasearch_score",
        "DELETE FROM trials",
        "DELETE FROM mqasearch_task",
        "UPDATE mqasearch_task SET mask = '11111'",
        "DELETE FROM studies",
        "UPDATE studies SET study_name = 'mine'",
        "INSERT INTO studies (study_name) VALUES ('mine')",
        "UPDATE mqasearch_alembic_version SET version_num = '0'",
        "UPDATE alembic_version SET version_num = '0'",
        "UPDATE study_user_attributes SET value_json = '{}' WHERE key = 'mqasearch:study'",
        "UPDATE study_user_attributes SET key = 'x' WHERE key = 'mqasearch:study'",
        "INSERT INTO study_user_attributes (study_id, key, value_json) "
        "SELECT study_id, 'mine', '{}' FROM studies; "
        "UPDATE study_user_attributes SET key = 'mqasearch:tolerance' WHERE key = 'mine'",
        "INSERT INTO study_user_attributes (study_id, key, value_json) "
        "SELECT study_id, 'mqasearch:tolerance', '[]' FROM studies",
        "INSERT INTO study_user_attributes (study_id, key, value_json) "
        "SELECT study_id, key, '{}' FROM study_user_attributes WHERE key = 'mqasearch:study' "
        "ON CONFLICT (study_id, key) DO UPDATE SET value_json = '{}'",
    ],
)
def test_a_worker_can_do_nothing_else(
    postgres_server: Postgres, database: str, statement: str
) -> None:
    with (
        psycopg.connect(postgres_server.address(database, "worker_1")) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        connection.execute(statement)


def test_a_dashboard_reads_everything_and_writes_nothing(
    postgres_server: Postgres, database: str
) -> None:
    owner = open_storage(postgres_server.address(database))
    run_study(owner, SPEC, SCORER)
    url = postgres_server.address(database, "viewer_1")
    viewer = open_storage(url, read_only=True)
    assert compare(studies_of(viewer)) == compare(studies_of(owner))
    owner.close()
    viewer.close()
    tables = postgres_server.execute(
        "SELECT tablename FROM pg_tables WHERE schemaname = 'public'", database
    )
    for (table,) in tables:
        with psycopg.connect(url) as connection:
            connection.execute(f"SELECT * FROM {table}")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(f"DELETE FROM {table}")


def test_whoever_may_only_read_is_told_so_at_the_start(
    postgres_server: Postgres, database: str
) -> None:
    with pytest.raises(StorageError, match=r"viewer_1.* may only read"):
        open_storage(postgres_server.address(database, "viewer_1"), create=False)


def test_a_worker_without_the_rights_of_a_newer_version_is_told_so(
    postgres_server: Postgres, database: str
) -> None:
    """Somebody upgraded the database, and did not run the roles again."""
    postgres_server.execute("REVOKE INSERT ON mqasearch_task FROM mqasearch_worker", database)
    with pytest.raises(StorageError, match=r"worker_1.* may only read.*roles\.sql"):
        open_storage(postgres_server.address(database, "worker_1"), create=False)
    postgres_server.execute("GRANT INSERT ON mqasearch_task TO mqasearch_worker", database)
