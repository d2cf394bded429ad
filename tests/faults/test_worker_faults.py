"""Workers that are killed, paused, or live in another time."""

import random
import signal
import time
from pathlib import Path

from faults.fleet import GRACE, LONG, Handicap, check, fleet


def test_nothing_happens(postgres_url: str, tmp_path: Path) -> None:
    with fleet(postgres_url, tmp_path) as workers:
        workers.create()
        workers.start(3)
        workers.wait()
        check(workers)


def test_killed_at_ten_random_moments(postgres_url: str, tmp_path: Path) -> None:
    moments = random.Random(1)
    with fleet(postgres_url, tmp_path, spec=LONG) as workers:
        workers.create()
        workers.start(3)
        for _ in range(10):
            workers.until_scored(1)
            time.sleep(moments.uniform(0, 0.2))
            workers.kill(moments.choice(workers.alive))
            workers.start()
        workers.wait()
        check(workers, twice=10)


def test_paused_past_the_grace_and_woken(postgres_url: str, tmp_path: Path) -> None:
    with fleet(postgres_url, tmp_path) as workers:
        workers.create()
        workers.start(2)
        paused = workers.processes[0]
        workers.until_scored(3)
        workers.signal(paused, signal.SIGSTOP)
        time.sleep(GRACE + 2)
        workers.signal(paused, signal.SIGCONT)
        workers.wait()
        check(workers, twice=1)


def test_clocks_that_differ_by_hours(postgres_url: str, tmp_path: Path) -> None:
    with fleet(postgres_url, tmp_path) as workers:
        workers.create()
        for skew in (-7200, 0, 7200):
            workers.start(handicap=Handicap(skew=skew))
        workers.wait()
        check(workers)
