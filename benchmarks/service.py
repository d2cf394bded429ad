"""What it costs to run a trial, apart from scoring: the service, and beside it plain Optuna.

Real worker processes run on a real database, with a scorer that takes no time. A trial has 30
categorical parameters. The service adds scores, claims, the queue, statistics and the list of
workers; plain Optuna is ``RDBStorage`` with a heartbeat and one user attribute per trial. Queries
on a worker's path are those that it waits for; a separate thread records trials in Optuna's study.

    python benchmarks/service.py                            PostgreSQL and SQLite, 1 to 32 workers
    python benchmarks/service.py --before CHECKOUT          beside the service of an older checkout
    python benchmarks/service.py --workers 8 --storage postgresql
    python benchmarks/service.py --growth 5000              cost per trial as a study grows
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import RDBStorage
from sqlalchemy import Engine, event

from mqasearch.creation import create_studies
from mqasearch.database import for_optuna, parse
from mqasearch.record import open_storage
from mqasearch.scoring import FakeScorer, Scoring
from mqasearch.spec import parse_spec
from mqasearch.study import find_studies
from mqasearch.worker import NO_LIMITS, Watcher, work_with

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from postgres import SETTINGS, Postgres, running_postgres

N_LAYERS, N_CONVERTED, N_DOCS = 30, 5, 200
NAME = "service"
DURABLE = {name: value for name, value in SETTINGS.items() if name != "fsync"}


@dataclass(frozen=True)
class Measured:
    """One worker's trials.

    Attributes:
        seconds: seconds from the end of one trial to the end of the next.
        queries: number of statements sent to the database meanwhile.
        waited: number of those statements that the worker waited for.
        began, ended: wall-clock times, in seconds since 1970.
    """

    seconds: list[float]
    queries: int
    began: float
    ended: float
    waited: int = 0


class Stopwatch:
    """Measures trials: ``lap`` is called at the end of every trial."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.queries = self.waited = self._waiting = 0
        self.began = time.time()
        self._last = time.perf_counter()

    def watch(self, engine: Engine) -> None:
        event.listen(engine, "before_cursor_execute", self._count)

    def _count(self, *_: Any) -> None:
        self.queries += 1
        self._waiting += threading.current_thread() is threading.main_thread()

    def lap(self, *_: Any) -> None:
        now = time.perf_counter()
        self.seconds.append(now - self._last)
        self._last = now
        self.waited = self._waiting  # leaves out the recording that remains at the end

    def measured(self) -> Measured:
        return Measured(self.seconds, self.queries, self.began, time.time(), self.waited)


def spec_of(n_trials: int) -> Any:
    return parse_spec(
        {
            "name": NAME,
            "model": f"fake:{N_LAYERS}",
            "budget": N_CONVERTED,
            "tasks": ["hellaswag"],
            "documents": {"search": N_DOCS, "confirmation": N_DOCS},
            "selectors": [{"name": "random", "n_trials": n_trials}],
        },
        "benchmark",
    )


class QuickScorer(FakeScorer):
    """A scorer that takes no time: it makes up one score and always returns it."""

    def score(self, kv_heads: Any, task: Any, documents: Any) -> Any:
        if not hasattr(self, "_made"):
            self._made = super().score(self.shape.original, task, documents)
        return self._made


def create(mode: str, url: str, n_trials: int) -> None:
    if mode == "plain":
        optuna.create_study(study_name=NAME, storage=plain_storage(url))
        return
    storage = open_storage(url)
    create_studies(storage.optuna, spec_of(n_trials), QuickScorer(N_LAYERS).shape)
    storage.close()


def plain_storage(url: str) -> RDBStorage:
    return RDBStorage(for_optuna(parse(url)), heartbeat_interval=30, grace_period=150)


def work_plain(url: str, n_trials: int, ready: Callable[[], None]) -> Measured:
    storage = plain_storage(url)
    sampler = optuna.samplers.RandomSampler()
    study = optuna.load_study(study_name=NAME, storage=storage, sampler=sampler)

    def objective(trial: optuna.Trial) -> float:
        flags = [
            trial.suggest_categorical(f"layer_{layer:02d}", (False, True))
            for layer in range(N_LAYERS)
        ]
        trial.set_user_attr("facts", {"value": 1.0})
        return float(sum(flags))

    ready()
    watch = Stopwatch()
    watch.watch(storage.engine)
    for _ in range(n_trials):  # like a worker, which reads the study between trials
        study.optimize(objective, n_trials=1)
        watch.lap()
    return watch.measured()


def work_service(url: str, n_trials: int, ready: Callable[[], None]) -> Measured:
    storage = open_storage(url)
    scorer = QuickScorer(N_LAYERS)
    studies = find_studies(storage.optuna, NAME)
    ready()
    watch = Stopwatch()
    watch.watch(storage.engine)
    scoring = Scoring(scorer, scorer.model, "float32", "fake", "", "none")
    confirming: list[Measured] = []

    def on_confirm(_: Any) -> None:
        confirming.append(watch.measured())

    work_with(
        scoring, storage, studies, NO_LIMITS, Watcher(on_trial=watch.lap, on_confirm=on_confirm)
    )
    storage.close()
    return confirming[0] if confirming else watch.measured()


def worker(mode: str, url: str, n_trials: int) -> None:
    def ready() -> None:
        print("ready", flush=True)
        sys.stdin.readline()

    measured = {"plain": work_plain, "service": work_service}[mode](url, n_trials, ready)
    print(json.dumps(vars(measured)), flush=True)


def create_before(checkout: Path, url: str, n_trials: int) -> None:
    """Run ``create`` of an older checkout."""
    lines = f"import service; service.create('service', {url!r}, {n_trials})"
    folders = os.pathsep.join(map(str, (checkout, checkout / "benchmarks", checkout / "tests")))
    environment = {**os.environ, "PYTHONPATH": folders, "PYTHONWARNINGS": "ignore"}
    subprocess.run(
        [sys.executable, "-c", lines],
        check=True,
        cwd=checkout,
        env=environment,
        stderr=subprocess.DEVNULL,
    )


def run_workers(
    mode: str, url: str, n_workers: int, n_trials: int, before: Path | None = None
) -> list[Measured]:
    """Run workers that all start at once; each does an equal share (plain), or the tasks that it
    gets (service)."""
    script, environment = Path(__file__), dict(os.environ)
    if mode == "before":
        assert before is not None
        create_before(before, url, n_trials)
        script = before / "benchmarks" / "service.py"
        environment["PYTHONPATH"] = str(before)
    else:
        create(mode, url, n_trials)
    work = "service" if mode == "before" else mode
    command = [sys.executable, str(script), "--work", work, url, str(n_trials // n_workers)]
    processes = [
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**environment, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        )
        for _ in range(n_workers)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    return [Measured(**json.loads(process.communicate()[0])) for process in processes]


def summary(results: Sequence[Measured]) -> dict[str, float]:
    laps = sorted(lap for one in results for lap in one.seconds[1:])  # the first one warms up
    span = max(one.ended for one in results) - min(one.began for one in results)
    n_trials = sum(len(one.seconds) for one in results)
    return {
        "trials": n_trials,
        "trials_per_second": n_trials / span,
        "p50_ms": 1e3 * statistics.median(laps),
        "p95_ms": 1e3 * laps[int(0.95 * (len(laps) - 1))],
        "queries_per_trial": sum(one.queries for one in results) / n_trials,
        "waited_per_trial": sum(one.waited for one in results) / n_trials,
    }


def urls(kind: str, stack: ExitStack) -> Iterator[str]:
    """URLs of new databases, as many as are asked for."""
    if kind == "postgresql":
        server: Postgres = stack.enter_context(running_postgres(DURABLE))
        while True:
            yield server.new_database()
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    number = 0
    while True:
        number += 1
        yield f"sqlite:///{folder}/{number}.db"


def compare(
    kinds: Sequence[str],
    modes: Sequence[str],
    counts: Sequence[int],
    n: int,
    before: Path | None,
) -> None:
    titles = ("trials/s", "p50 ms", "p95 ms", "queries", "on path")
    print(f"{'':24}" + "".join(f"{title:>12}" for title in titles))
    for kind in kinds:
        with ExitStack() as stack:
            fresh = urls(kind, stack)
            for n_workers in counts:
                for mode in modes:
                    done = run_workers(mode, next(fresh), n_workers, max(n, 4 * n_workers), before)
                    row = summary(done)
                    figures = [row[key] for key in ("trials_per_second", "p50_ms", "p95_ms")]
                    print(
                        f"{kind:11}{n_workers:4} {mode:8}"
                        + "".join(f"{figure:12.1f}" for figure in figures)
                        + f"{row['queries_per_trial']:12.1f}{row['waited_per_trial']:12.1f}",
                        flush=True,
                    )


def growth(kinds: Sequence[str], modes: Sequence[str], n_trials: int) -> None:
    """One worker and one study: the median seconds of a trial in successive windows."""
    for kind in kinds:
        with ExitStack() as stack:
            fresh = urls(kind, stack)
            for mode in modes:
                (one,) = run_workers(mode, next(fresh), 1, n_trials)
                print(f"{kind} {mode}")
                for end in (100, 200, 500, 1000, 2000, 5000, 10000):
                    if end <= len(one.seconds):
                        window = one.seconds[end - 50 : end]
                        print(
                            f"  trial {end:6}: {1e3 * statistics.median(window):7.1f} ms",
                            flush=True,
                        )


def numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workers", type=numbers, default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--storage", default="postgresql,sqlite")
    parser.add_argument("--mode", default="plain,service")
    parser.add_argument("--before", type=Path, help="a checkout of older code")
    parser.add_argument("--trials", type=int, default=400, help="of each study")
    parser.add_argument("--growth", type=int, help="trials of one study, by one worker")
    parser.add_argument("--work", nargs=3, metavar=("MODE", "URL", "N"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    if options.work:
        mode, url, n_trials = options.work
        worker(mode, url, int(n_trials))
    elif options.growth:
        growth(options.storage.split(","), options.mode.split(","), options.growth)
    else:
        kinds, modes = options.storage.split(","), options.mode.split(",")
        modes = ["before"] * (options.before is not None) + modes
        compare(kinds, modes, options.workers, options.trials, options.before)


if __name__ == "__main__":
    main()
