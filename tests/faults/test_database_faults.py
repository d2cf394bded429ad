"""The database restarts, the network fails, the disk fills: workers wait, and lose nothing."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.fleet import LONG, Handicap, check, fleet
from faults.tcp_proxy import Proxy, proxy_to
from postgres import Postgres, running_postgres

from mqasearch.record import upgrade_storage


@pytest.fixture(scope="module")
def own_server() -> Iterator[Postgres]:
    """A server that may be killed without harm to other tests."""
    with running_postgres() as server:
        yield server


@pytest.fixture
def proxy(own_server: Postgres) -> Iterator[Proxy]:
    with proxy_to(own_server.port) as running:
        yield running


def through(proxy: Proxy, url: str, server: Postgres) -> str:
    return url.replace(f":{server.port}/", f":{proxy.port}/")


def test_the_server_is_killed_and_restarted(own_server: Postgres, tmp_path: Path) -> None:
    with fleet(own_server.new_database(), tmp_path) as workers:
        workers.create()
        workers.start(3)
        for downtime in (0.5, 3.0, 6.0):  # the last one is longer than the grace
            workers.until_scored(4)
            own_server.kill()
            time.sleep(downtime)
            own_server.restart()
        workers.wait()
        check(workers, twice=3)


def test_connections_are_cut(own_server: Postgres, proxy: Proxy, tmp_path: Path) -> None:
    url = own_server.new_database()
    with fleet(through(proxy, url, own_server), tmp_path, spec=LONG) as workers:
        workers.create()
        workers.start(3)
        for _ in range(20):
            workers.until_scored(1)
            proxy.cut()
        workers.wait()
        check(workers)
        assert proxy.n_connections > 20


def test_half_open_connections(own_server: Postgres, proxy: Proxy, tmp_path: Path) -> None:
    url = own_server.new_database()
    impatient = Handicap(answer_seconds=2)
    with fleet(through(proxy, url, own_server), tmp_path, handicap=impatient) as workers:
        workers.create()
        workers.start(2)
        for _ in range(2):
            workers.until_scored(4)
            proxy.frozen = True
            time.sleep(3)
            proxy.cut()  # from outside nothing was heard of this; new connections work
            proxy.frozen = False
        workers.wait()
        check(workers, twice=2)  # with the pauses between attempts, longer than the grace at worst


def test_a_slow_network(own_server: Postgres, proxy: Proxy, tmp_path: Path) -> None:
    url = own_server.new_database()
    with fleet(through(proxy, url, own_server), tmp_path) as workers:
        workers.create()
        proxy.delay = 0.003
        workers.start(3)
        workers.wait(240)
        check(workers)


def test_the_disk_is_full_for_a_while(tmp_path: Path) -> None:
    full = tmp_path / "full"
    url = f"sqlite:///{tmp_path}/study.db"
    with fleet(url, tmp_path, handicap=Handicap(disk=full)) as workers:
        workers.create()
        workers.start(2)
        workers.until_scored(5)
        full.touch()
        time.sleep(3)
        n_scored = len(workers.scored())
        time.sleep(1)
        assert len(workers.scored()) <= n_scored + 2  # nobody gets past the trial in hand
        full.unlink()
        workers.wait()
        check(workers, twice=2)  # nobody could be heard for about the grace


def test_a_disk_that_stays_full_ends_the_worker_and_loses_nothing(tmp_path: Path) -> None:
    full = tmp_path / "full"
    url = f"sqlite:///{tmp_path}/study.db"
    with fleet(url, tmp_path, handicap=Handicap(disk=full, patience=1)) as workers:
        workers.create()
        workers.start(1)
        workers.until_scored(5)
        full.touch()
        (stopped,) = workers.processes
        stopped.join(60)
        assert stopped.exitcode == 1
        workers.processes.clear()
        full.unlink()
        workers.start(1)
        workers.wait()
        check(workers, twice=1)


def test_the_schema_is_upgraded_while_workers_run(own_server: Postgres, tmp_path: Path) -> None:
    url = own_server.new_database()
    with fleet(url, tmp_path, spec=LONG) as workers:
        workers.create()
        workers.start(3)
        for _ in range(5):
            workers.until_scored(2)
            upgrade_storage(url)
        workers.wait()
        check(workers)


def test_several_create_at_once(own_server: Postgres, tmp_path: Path) -> None:
    faults: list[BaseException] = []

    def create() -> None:
        try:
            workers.create()
        except BaseException as error:
            faults.append(error)

    with fleet(own_server.new_database(), tmp_path) as workers:
        creators = [threading.Thread(target=create) for _ in range(4)]
        for creator in creators:
            creator.start()
        for creator in creators:
            creator.join()
        assert not faults
        workers.start(2)
        workers.wait()
        check(workers)
