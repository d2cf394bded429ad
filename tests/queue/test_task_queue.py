"""Laws of the queue, on both databases."""

import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, text, update

from mqasearch.database import schema
from mqasearch.database.connecting import PLUGIN
from mqasearch.queue import DEATHS, Queue, Result, Task, kept
from mqasearch.queue.task_queue import TABLE

STUDY, OTHER_STUDY = 1, 2
DONE = Result("complete", 1.5, facts={"value": 1.5})
MASKS = [f"{number:06b}" for number in range(64)]


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    if request.param == "sqlite":
        made = create_engine(f"sqlite:///{tmp_path}/queue.db", plugins=[PLUGIN])
    else:
        url = request.getfixturevalue("postgres_url")
        made = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    schema.upgrade(made)
    yield made
    made.dispose()


@pytest.fixture
def queue(engine: Engine) -> Queue:
    return Queue(engine, worker="me")


@pytest.fixture
def other(engine: Engine) -> Queue:
    return Queue(engine, worker="other")


def added(queue: Queue, number: int = 0) -> Task:
    task = queue.add(STUDY, number, MASKS[number])
    assert task is not None
    return task


def silence(engine: Engine, *, seconds: float = 1e6) -> None:
    """As if nothing had been heard of any worker for so long."""
    with engine.begin() as connection:
        connection.execute(
            update(TABLE)
            .where(TABLE.c.state == "leased")
            .values(lease_until=TABLE.c.lease_until - seconds)
        )


@pytest.fixture
def old_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server has been up for longer than a lease."""
    monkeypatch.setattr("mqasearch.queue.task_queue.seconds_started", lambda: 0.0)


def test_what_is_added_is_ours_until_it_is_finished(queue: Queue, other: Queue) -> None:
    task = added(queue)
    assert (task.number, task.mask, task.state) == (0, MASKS[0], "leased")
    assert other.take(STUDY) is None
    assert not other.finish(task, DONE)
    assert queue.finish(task, DONE)
    (found,) = queue.tasks(STUDY)
    assert (found.state, found.value, found.is_finished, found.is_free) == (
        "complete",
        1.5,
        True,
        False,
    )
    assert queue.facts(found) == DONE.facts
    assert queue.tasks(OTHER_STUDY) == []


def test_no_mask_and_no_place_is_given_twice(queue: Queue, other: Queue) -> None:
    added(queue)
    assert other.add(STUDY, 0, MASKS[1]) is None
    assert other.add(STUDY, 1, MASKS[0]) is None
    assert other.add(STUDY, 1, MASKS[1]) is not None
    assert other.add(OTHER_STUDY, 0, MASKS[0]) is not None
    assert [task.number for task in queue.tasks(STUDY)] == [0, 1]


def test_many_that_add_at_once_get_a_place_each(engine: Engine) -> None:
    """Each looks, decides, and looks again if somebody else came first."""
    together = threading.Barrier(6)

    def work(worker: int) -> list[int]:
        queue, numbers = Queue(engine, worker=f"worker {worker}"), []
        together.wait()
        while (n := len(queue.tasks(STUDY))) < 40:
            if (task := queue.add(STUDY, n, MASKS[n])) is not None:
                queue.finish(task, DONE)
                numbers.append(task.number)
        return numbers

    with ThreadPoolExecutor(6) as pool:
        mine = [*pool.map(work, range(6))]
    assert sorted(number for numbers in mine for number in numbers) == list(range(40))


def test_what_is_queued_is_taken_once_in_order(engine: Engine) -> None:
    queue = Queue(engine, worker="creator")
    for number in range(20):
        assert queue.enqueue(STUDY, f"mask {number}", MASKS[number]).number == number
    assert queue.enqueue(STUDY, "again", MASKS[3]).name == "mask 3"

    def work(worker: int) -> list[int]:
        mine, numbers = Queue(engine, worker=f"worker {worker}"), []
        while (task := mine.take(STUDY)) is not None:
            numbers.append(task.number)
            mine.finish(task, DONE)
        return numbers

    with ThreadPoolExecutor(4) as pool:
        taken = [*pool.map(work, range(4))]
    assert sorted(number for numbers in taken for number in numbers) == list(range(20))
    assert all(numbers == sorted(numbers) for numbers in taken)


def test_a_task_whose_answer_was_lost_is_taken_again(queue: Queue) -> None:
    task = added(queue)
    assert queue.take(STUDY) == task
    assert queue.add(STUDY, task.number, task.mask) == task


@pytest.mark.usefixtures("old_server")
def test_a_silent_worker_loses_its_task_and_its_result(
    engine: Engine, queue: Queue, other: Queue
) -> None:
    task = added(queue)
    silence(engine)
    (seen,) = other.tasks(STUDY)
    assert seen.is_free
    taken = other.take(STUDY)
    assert taken is not None
    assert taken.task_id == task.task_id
    assert not queue.renew(task)
    assert not queue.finish(task, DONE)
    queue.give_back(task)
    assert other.finish(taken, DONE)


@pytest.mark.usefixtures("old_server")
def test_a_lease_that_is_renewed_stays(engine: Engine, queue: Queue, other: Queue) -> None:
    task = added(queue)
    silence(engine)
    assert queue.renew(task)
    assert other.take(STUDY) is None


@pytest.mark.usefixtures("old_server")
def test_a_mask_that_kills_its_workers_becomes_invalid(engine: Engine, queue: Queue) -> None:
    added(queue)
    for death in range(1, DEATHS):
        silence(engine)
        assert Queue(engine, worker=f"worker {death}").take(STUDY) is not None
    silence(engine)
    assert queue.take(STUDY) is None
    (task,) = queue.tasks(STUDY)
    assert task.state == "invalid"
    assert f"{DEATHS} workers died" in (task.fault or "")


def test_nobody_died_of_a_mask_that_was_given_back(queue: Queue, other: Queue) -> None:
    task: Task | None = added(queue)
    for _ in range(2 * DEATHS):
        assert task is not None
        queue.give_back(task)
        task = queue.take(STUDY)
    assert task is not None
    queue.give_back(task, out_of_memory=True)
    taken = other.take(STUDY)
    assert taken is not None
    assert taken.out_of_memory == 1


def test_tasks_of_workers_that_are_gone_are_free(queue: Queue, other: Queue) -> None:
    added(queue)
    assert other.give_up_leases([]) == 0
    assert other.give_up_leases(["me"]) == 1
    assert other.give_up_leases(["me"]) == 0
    assert other.take(STUDY) is not None


def test_after_a_restart_of_the_server_everybody_gets_the_grace_to_be_heard(
    postgres_url: str,
) -> None:
    engine = create_engine(postgres_url.replace("postgresql:", "postgresql+psycopg:"))
    schema.upgrade(engine)
    hours = 10 * 3600.0
    added(Queue(engine, worker="me", lease_seconds=hours))
    silence(engine, seconds=2 * hours)
    assert Queue(engine, worker="other", lease_seconds=hours).take(STUDY) is None
    engine.dispose()


def test_a_lease_is_renewed_in_the_background(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = Queue(engine, worker="me", lease_seconds=0.15)
    task, renewed = added(queue), threading.Event()
    renew = queue.renew

    def noted(task: Task) -> bool:
        done = renew(task)
        renewed.set()
        return done

    monkeypatch.setattr(queue, "renew", noted)
    with kept(queue, task):
        assert renewed.wait(10)


def test_a_worker_that_lost_its_task_is_told_once(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    queue = Queue(engine, worker="me", lease_seconds=0.06)
    task = added(queue)
    queue.give_back(task)
    with kept(queue, task):
        for _ in range(1000):
            if caplog.records:
                break
            threading.Event().wait(0.01)
        threading.Event().wait(0.1)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def scenario(queue: Queue) -> list[Any]:
    """All that a worker does to its queue, once; what is left of it."""
    queue.enqueue(STUDY, "first", MASKS[0])
    first = queue.take(STUDY)
    assert first is not None
    assert queue.renew(first)
    assert queue.finish(first, DONE)
    for number, result in ((1, DONE), (2, Result("invalid", fault="nan"))):
        assert queue.finish(added(queue, number), result)
    given_back = added(queue, 3)
    queue.give_back(given_back, out_of_memory=True)
    assert queue.set_trial(first, 7)
    queue.set_recorded(first)
    seen = [(t.number, t.mask, t.state, t.value, t.fault) for t in queue.tasks(STUDY)]
    return [*seen, *(row[0].number for row in queue.unrecorded(STUDY))]


def test_a_lost_answer_changes_nothing_whichever_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It happens, and the client hears of a failure."""
    engine = create_engine(f"sqlite:///{tmp_path}/queue.db", plugins=[PLUGIN])
    schema.upgrade(engine)
    commit = type(engine.dialect).do_commit
    counts: Counter[str] = Counter()
    lost = 0

    def lossy(connection: Any) -> None:
        commit(engine.dialect, connection)
        counts["commits"] += 1
        if counts["commits"] == lost:
            raise sqlite3.OperationalError("database is locked (not really)")

    monkeypatch.setattr(engine.dialect, "do_commit", lossy)
    expected = scenario(Queue(engine, worker="me"))
    n_commits = counts["commits"]
    assert n_commits >= 10
    for lost in range(1, n_commits + 1):
        with engine.begin() as connection:
            connection.execute(TABLE.delete())
        counts.clear()
        assert scenario(Queue(engine, worker="me")) == expected, f"commit {lost} of {n_commits}"
    engine.dispose()


def test_one_trial_records_a_task(queue: Queue) -> None:
    task = added(queue)
    queue.finish(task, DONE)
    ((unrecorded, facts, trial_id),) = queue.unrecorded(STUDY)
    assert (unrecorded.number, facts, trial_id) == (0, DONE.facts, None)
    assert queue.set_trial(task, 5)
    assert queue.set_trial(task, 5)
    assert not queue.set_trial(task, 6)
    queue.set_recorded(task)
    assert queue.unrecorded(STUDY) == []


def test_tasks_of_a_deleted_study_are_forgotten_until_the_new_one_is_made(
    engine: Engine, queue: Queue
) -> None:
    with engine.begin() as connection:
        connection.execute(
            text('CREATE TABLE study_user_attributes (study_id INTEGER, "key" VARCHAR(512))')
        )
    added(queue)
    queue.forget(STUDY)
    assert queue.tasks(STUDY) == []
    added(queue)
    with engine.begin() as connection:
        connection.execute(
            text(f"INSERT INTO study_user_attributes VALUES ({STUDY}, 'mqasearch:study')")
        )
    queue.forget(STUDY)
    assert len(queue.tasks(STUDY)) == 1
