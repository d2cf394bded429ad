"""Real worker processes on a real database, to be killed, paused and cut off.

Workers are forked from a server process that has imported everything, so that a test can start
dozens of them. They score with the fake scorer, whose truth is known.
"""

import datetime as clock
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import optuna
from optuna.storages._rdb import storage as optuna_rdb
from optuna.trial import TrialState
from sqlalchemy import event, text
from studies_on_fake import run_study, spec_of, storage_in

from mqasearch.database import Patience, connecting
from mqasearch.export import export
from mqasearch.record import Storage, open_storage
from mqasearch.score import Documents
from mqasearch.scores import ScoreStore
from mqasearch.scoring import FakeScorer, model_shape
from mqasearch.spec import StudySpec
from mqasearch.study import Outlook, find_studies, open_selections, recording
from mqasearch.worker import create, work

GRACE = 4
PLANNED = ("sensitivity", "greedy")
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["faults.fleet"])


def start_fork_server() -> None:
    """Let it import everything now. By itself it does not know where the tests are."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])
    try:
        forkserver.ensure_running()
    finally:
        del os.environ["PYTHONPATH"]
        if before is not None:
            os.environ["PYTHONPATH"] = before


@dataclass(frozen=True)
class Handicap:
    """What is wrong with one worker.

    Attributes:
        skew: seconds that its clock is ahead.
        answer_seconds: seconds after which it gives up a silent connection.
        patience: seconds that it waits for a database that is away.
        disk: a file; while it exists, SQLite's disk is full for the worker.
    """

    skew: float = 0.0
    answer_seconds: float | None = None
    patience: float = 120.0
    disk: Path | None = None


HEALTHY = Handicap()


def the_spec(
    seconds: float = 0.05,
    n_random: int = 10,
    n_layers: int = 6,
    budget: int = 3,
    more: Sequence[Any] = (),
) -> StudySpec:
    """A study of three selectors, two of which have a plan that must not be disturbed."""
    return spec_of(
        model=f"fake:{n_layers}:{seconds}",
        budget=budget,
        documents={"search": 20, "confirmation": 20},
        selectors=["sensitivity", "greedy", {"name": "random", "n_trials": n_random}, *more],
    )


LONG = the_spec(seconds=0.1, n_random=40, n_layers=8)
"""A study that goes on, even on a fast machine, while a test disturbs it many times."""


def worker(url: str, name: str, log: str, handicap: Handicap) -> None:
    """The body of a worker process; what it scores goes to ``log``."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if handicap.answer_seconds is not None:
        connecting.ANSWER_SECONDS = handicap.answer_seconds  # type: ignore[assignment]
    if handicap.skew:
        _skew(handicap.skew)
    storage = _open(url, handicap)
    if handicap.disk is not None:
        _fill(storage, handicap.disk)
    _log_scores(log)
    work(storage, name)
    storage.close()


def _open(url: str, handicap: Handicap) -> Storage:
    deadline = time.monotonic() + 60
    while True:  # as a supervisor of workers does
        try:
            patience = Patience(handicap.patience)
            return open_storage(url, create=False, patience=patience, grace=GRACE)
        except Exception:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.3)


def _skew(seconds: float) -> None:
    offset = clock.timedelta(seconds=seconds)
    real = time.time

    class SkewedClock(clock.datetime):
        @classmethod
        def now(cls, tz: clock.tzinfo | None = None) -> clock.datetime:  # type: ignore[override]
            return clock.datetime.now(tz) + offset

    time.time = lambda: real() + seconds
    optuna_rdb.datetime = SkewedClock  # type: ignore[misc]
    recording.datetime = SkewedClock  # type: ignore[misc]


def _fill(storage: Storage, disk: Path) -> None:
    """SQLite's own fault for a full disk: the file may not grow by a page."""

    def limit(connection: Any) -> None:
        pages = 1 if disk.exists() else 2**30
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

    event.listen(storage.engine, "begin", limit, insert=True)


def _log_scores(path: str) -> None:
    put = ScoreStore.put

    def logged(self: ScoreStore, key: Any, score: Any) -> Any:
        with open(path, "a") as log:
            log.write(json.dumps([os.getpid(), key.digest()]) + "\n")
        return put(self, key, score)

    ScoreStore.put = logged  # type: ignore[method-assign]


@dataclass
class Fleet:
    """Workers of one study.

    Attributes:
        url: of the database they use.
        folder: folder for the log of scores.
        handicap: handicap of workers that are started without one of their own.
    """

    url: str
    folder: Path
    spec: StudySpec = field(default_factory=the_spec)
    handicap: Handicap = HEALTHY
    processes: list[Any] = field(default_factory=list)

    def create(self) -> None:
        storage = open_storage(self.url)
        create(storage, self.spec)
        storage.close()

    def start(self, n: int = 1, handicap: Handicap | None = None) -> None:
        for _ in range(n):
            arguments = (self.url, self.spec.name, str(self.log), handicap or self.handicap)
            process = CONTEXT.Process(target=worker, args=arguments)
            process.start()
            self.processes.append(process)

    @property
    def log(self) -> Path:
        return self.folder / "scored.log"

    @property
    def alive(self) -> list[Any]:
        return [process for process in self.processes if process.is_alive()]

    def kill(self, process: Any) -> None:
        process.kill()
        process.join(10)
        self.processes.remove(process)

    def signal(self, process: Any, number: signal.Signals) -> None:
        os.kill(process.pid, number)

    def wait(self, seconds: float = 120) -> None:
        """Wait until all have ended; each must have ended well."""
        deadline = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        hanging = [process.pid for process in self.alive]
        assert not hanging, f"workers hang: {hanging}\n{self.report()}"
        codes = [process.exitcode for process in self.processes]
        assert codes == [0] * len(codes)

    def report(self) -> str:
        storage = open_storage(self.url, create=False)
        lines = [f"{len(self.alive)} workers alive, {len(self.scored())} masks scored"]
        with storage.engine.connect() as connection:
            for table in ("mqasearch_claim", "mqasearch_worker", "mqasearch_task"):
                lines += [str(row) for row in connection.execute(text(f"SELECT * FROM {table}"))]
        for name in find_studies(storage.optuna, self.spec.name):
            study = optuna.load_study(study_name=name, storage=storage.optuna)
            lines += [f"{name} {trial.number} {trial.state}" for trial in study.get_trials()]
        storage.close()
        return "\n".join(lines)

    def scored(self) -> list[str]:
        """The digests that were scored, each as often as it was scored."""
        if not self.log.exists():
            return []
        return [json.loads(line)[1] for line in self.log.read_text().splitlines()]

    def until_scored(self, n: int, seconds: float = 60) -> None:
        """Wait until ``n`` more scores were computed."""
        target = len(self.scored()) + n
        deadline = time.monotonic() + seconds
        while len(self.scored()) < target:
            assert time.monotonic() < deadline, f"nothing is scored any more\n{self.report()}"
            assert self.alive, f"all workers have ended\n{self.report()}"
            time.sleep(0.02)


@contextmanager
def fleet(url: str, folder: Path, **settings: Any) -> Iterator[Fleet]:
    """A fleet whose workers are all killed at the end of the block."""
    start_fork_server()
    workers = Fleet(url, folder, **settings)
    try:
        yield workers
    finally:
        for process in workers.processes:
            if process.is_alive():
                process.kill()
            process.join(10)
            process.close()


def check(workers: Fleet, *, twice: int = 0) -> None:
    """Check that nothing is lost, wrong or hanging.

    Args:
        workers: workers that have ended.
        twice: how many scores may have been computed twice, because a worker was silent for too
            long or its score was lost.
    """
    with closing(open_storage(workers.url, create=False)) as storage:
        _check_ended(storage, workers.spec)
        _check_truth(storage, workers.spec)
        counts = workers.scored()
        assert len(counts) - len(set(counts)) <= twice
        assert _essence(storage, workers.spec) == _without_faults(workers.folder, workers.spec)


def _check_ended(storage: Storage, spec: StudySpec) -> None:
    """Check that every study has its trials, none of them twice."""
    studies = find_studies(storage.optuna, spec.name)
    for selection in open_selections(storage.optuna, studies):
        trials = selection.study.get_trials()
        unfinished = {TrialState.RUNNING, TrialState.WAITING}
        assert not [trial for trial in trials if trial.state in unfinished]
        assert selection.outlook() == Outlook.DONE
        done = [trial for trial in trials if trial.state != TrialState.FAIL]
        masks = [trial.user_attrs["mqasearch:mask"] for trial in done]
        assert len(masks) == len(set(masks)), _listed(trials)
        if selection.facts.n_trials is not None:
            assert len(done) == selection.facts.n_trials, _listed(trials)


def _listed(trials: Sequence[optuna.trial.FrozenTrial]) -> str:
    return "\n".join(
        f"{trial.number} {trial.state.name} {trial.datetime_start} {trial.datetime_complete} "
        f"{trial.user_attrs.get('mqasearch:mask')} {trial.system_attrs}"
        for trial in trials
    )


def _check_truth(storage: Storage, spec: StudySpec) -> None:
    """Check that every score in the database is what the scorer says."""
    scorer = FakeScorer(model_shape(spec).n_layers)
    (task,) = spec.task_specs
    with storage.engine.connect() as connection:
        query = "SELECT kv_heads, documents, metrics FROM mqasearch_score"
        rows = connection.execute(text(query)).all()
        assert connection.execute(text("SELECT count(*) FROM mqasearch_claim")).scalar_one() == 0
    assert len(rows) == len({(row.kv_heads, row.documents) for row in rows})
    for row in rows:
        split, _, n_docs = row.documents.partition(":")
        documents = Documents(split, int(n_docs), spec.documents.seed)
        kv_heads = tuple(map(int, row.kv_heads.split(",")))
        metrics = row.metrics if isinstance(row.metrics, dict) else json.loads(row.metrics)
        assert metrics == scorer.score(kv_heads, task, documents).values


def _essence(storage: Storage, spec: StudySpec) -> Any:
    """The parts of the export that do not depend on times and on the order of trials."""
    studies = [
        optuna.load_study(study_name=name, storage=storage.optuna)
        for name in find_studies(storage.optuna, spec.name)
        if name.rpartition(".")[2] in PLANNED
    ]
    document = export(spec.name, studies)
    keys = ("mask", "kv_heads", "scores", "baseline", "delta")
    return [{key: mask[key] for key in keys} for mask in document["masks"]]


def _without_faults(folder: Path, spec: StudySpec) -> Any:
    storage = storage_in(folder)
    planned = [selector for selector in spec.selectors if selector.name in PLANNED]
    spec = spec.model_copy(update={"selectors": planned})
    run_study(storage, spec, FakeScorer(model_shape(spec).n_layers))
    essence = _essence(storage, spec)
    storage.close()
    return essence
