"""Workers as Ray tasks, one each, on the cluster that ``RAY_ADDRESS`` names or that runs here.

Ray starts a task again on another node when its process or its node dies. The database's URL is
an argument of the task: unlike a runtime environment, arguments are not shown by Ray's dashboard.
"""

import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from mqasearch.errors import MqasearchError, TransientError, UserError
from mqasearch.launch.fleet import Fleet

log = logging.getLogger(__name__)

RESTARTS = 3
PAUSE_SECONDS = 10.0
"""Seconds before a worker that met an outage tries again; twice as many before the next time."""

STOP_SECONDS = 30.0
"""Seconds in which workers give back the trials in hand before they are killed."""

CONNECT_SECONDS = 5.0
START = "Start one with `ray start --head`, or set RAY_ADDRESS to one that runs"

Work = Callable[[str, Fleet], None]
"""All that a worker does, as a function of the database's URL and the fleet. Ray pickles it by its
name, so it has to be a module-level function of a module that every node has."""


@dataclass(frozen=True)
class _Refusal:
    """A deliberate error of a worker, in words, since not every exception can be pickled."""

    words: str
    kind: type[MqasearchError]


def run_on_ray(fleet: Fleet, url: str, work: Work) -> None:
    """Run the fleet's workers and wait until all have ended.

    An interrupt is passed on to them.

    Args:
        fleet: how many workers, and what each needs.
        url: URL of the database.
        work: what each worker does.

    Raises:
        UserError: no cluster is running; or every worker refused its input, with the first one's
            reason.
        MqasearchError: none ended well.
    """
    with _cluster():
        _warn_of_waiting(fleet)
        worker = ray.remote(max_calls=1, max_retries=RESTARTS)(_live)
        tasks = [
            worker.options(name=f"{fleet.study} worker {index}", **resources(fleet)).remote(
                work, url, fleet
            )
            for index in range(fleet.n_workers)
        ]
        try:
            refusals = [refusal for refusal in _results(tasks) if refusal is not None]
        except BaseException:
            _cancel(tasks)
            raise
    if len(refusals) == len(tasks):
        (kind, *others) = {refusal.kind for refusal in refusals}
        raise (MqasearchError if others else kind)(refusals[0].words)


def resources(fleet: Fleet) -> dict[str, int]:
    """What Ray reserves for each worker; Ray divides the CPU threads by it."""
    needed = {"num_cpus": fleet.cpus, "num_gpus": fleet.gpus}
    return needed if fleet.memory is None else {**needed, "memory": fleet.memory * 2**30}


def _live(work: Work, url: str, fleet: Fleet) -> _Refusal | None:
    """What runs in the Ray task; returns the worker's error, if it was a deliberate one."""
    try:
        _until_it_passes(work, url, fleet)
    except MqasearchError as error:
        return _Refusal(str(error), _kind(error))
    return None


def _until_it_passes(work: Work, url: str, fleet: Fleet) -> None:
    """Work, and try again after a fault that may pass, such as an outage of the database.

    Raises:
        TransientError: it did not pass.
    """
    for attempt in range(RESTARTS):
        try:
            return work(url, fleet)
        except TransientError as error:
            pause = PAUSE_SECONDS * 2**attempt
            log.warning("%s; trying again in %.0f s", error, pause)
            time.sleep(pause)
    return work(url, fleet)


def _kind(error: MqasearchError) -> type[MqasearchError]:
    kinds = (UserError, TransientError)
    return next((kind for kind in kinds if isinstance(error, kind)), MqasearchError)


@contextmanager
def _cluster() -> Iterator[None]:
    """Connect to the cluster for the length of the block; keep the present signal handlers."""
    if ray.is_initialized():
        yield
        return
    _check_address()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ray.init(address="auto", logging_level=logging.WARNING)
    except (ConnectionError, RayError, ValueError) as error:
        said = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"no Ray cluster: {said} {START}") from None
    for number, handler in handlers.items():
        signal.signal(number, handler)
    try:
        yield
    finally:
        ray.shutdown()


def _check_address() -> None:
    """Check that the cluster can be reached, since Ray itself would try for minutes."""
    address = os.environ.get("RAY_ADDRESS", "")
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"no Ray cluster at RAY_ADDRESS={address}: {error}. {START}") from None


def _warn_of_waiting(fleet: Fleet) -> None:
    """Warn that a task that fits no node waits for one silently, and perhaps for ever."""
    there = ray.cluster_resources()  # type: ignore[no-untyped-call]
    for name, needed in (("CPU", fleet.cpus), ("GPU", fleet.gpus)):
        have = there.get(name, 0)
        if needed * fleet.n_workers > have:
            log.warning(
                "the Ray cluster has %g %s(s), %d worker(s) need %d each: some wait for more",
                have,
                name,
                fleet.n_workers,
                needed,
            )


def _results(tasks: Sequence[Any]) -> Iterator[_Refusal | None]:
    """The result of each worker, as they end."""
    left = list(tasks)
    while left:
        (done,), left = ray.wait(left, num_returns=1)
        try:
            refusal: _Refusal | None = ray.get(done)
        except RayError as error:
            refusal = _Refusal(
                f"a worker died: {str(error).strip().splitlines()[-1]}", MqasearchError
            )
        if refusal is not None:
            log.warning("%s; %d worker(s) left", refusal.words, len(left))
        yield refusal


def _cancel(tasks: Sequence[Any]) -> None:
    """Interrupt the tasks as Ctrl-C would, then kill those that still run."""
    for task in tasks:
        ray.cancel(task)
    _, left = ray.wait(list(tasks), num_returns=len(tasks), timeout=STOP_SECONDS)
    for task in left:
        ray.cancel(task, force=True)
