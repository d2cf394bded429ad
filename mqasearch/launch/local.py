"""Workers as processes of this machine, kept alive by the process that started them.

They end with it, however it ends (``lifeline``). Each is in a session of its own, so that Ctrl-C
reaches them once, by way of the parent: a second signal would end them before they have given their
trials back.
"""

import contextlib
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from mqasearch.errors import MqasearchError, TransientError, UserError

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2
RESTARTS = 3
PAUSE_SECONDS = 1.0
"""Seconds before the first restart; twice as many before the next."""

STEADY_SECONDS = 600.0
"""A worker that lived this long (in seconds) is able to start, so its deaths are counted anew."""

STOP_SECONDS = 30.0
"""Seconds in which workers give back the trials in hand before they are killed."""

READ_SECONDS = 5.0
"""Seconds to wait for the last lines of a process that has ended: a child of it may keep its output
open."""

BAD_INPUT = UserError.exit_code
STOPPED = (130, 143, -2, -15)
"""Exit codes of a worker that somebody stopped on purpose, by SIGINT or SIGTERM."""


def gpus() -> int:
    """Number of CUDA devices that this process may use."""
    return torch.cuda.device_count()


def devices_for(device: str, n_workers: int) -> list[str]:
    """One device for each worker; with ``auto``, GPUs in turn if there are any."""
    if device == "auto" and gpus():
        return [f"cuda:{worker % gpus()}" for worker in range(n_workers)]
    return [device] * n_workers


def threads_for(n_workers: int) -> int:
    """CPU threads of each worker, so that all together have one per core."""
    if sys.platform == "linux":
        return max(1, len(os.sched_getaffinity(0)) // n_workers)
    return max(1, (os.cpu_count() or 1) // n_workers)


@dataclass
class Child:
    """One worker's place. If its process dies, another one takes the place.

    Attributes:
        label: text before each line of its output.
        command: words of its command line.
        environment: environment of its process.
        held: file descriptors that its process shall hold open.
        code: exit code of the last process.
    """

    label: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(repr=False)  # with the database's URL
    held: Sequence[int] = ()
    code: int | None = field(default=None, init=False)
    process: subprocess.Popen[str] | None = field(default=None, init=False)
    _reader: threading.Thread | None = field(default=None, init=False)
    _deaths: int = field(default=0, init=False)
    _started: float = field(default=0.0, init=False)
    _due: float = field(default=0.0, init=False)

    def tend(self) -> bool:
        """Start the process if it is time to; if it has ended, decide whether it starts again.

        Returns:
            Whether a process runs now or will be started.
        """
        now = time.monotonic()
        if self.process is None:
            if now >= self._due:
                self._start()
            return True
        self.code = self.process.poll()
        if self.code is None:
            return True
        self._close()
        pause = self._pause_after(self.code, now - self._started)
        if pause is None:
            return False
        self._due = now + pause
        return True

    def stop(self, deadline: float) -> None:
        """Wait for a process that was told to stop; kill it at the deadline."""
        if self.process is None:
            return
        try:
            self.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._close()

    def _start(self) -> None:
        self._started = time.monotonic()
        self.process = subprocess.Popen(  # noqa: S603
            self.command,
            stdin=subprocess.PIPE,  # ends with this process: see lifeline
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=self.environment,
            pass_fds=self.held,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._pass_on, args=(self.process,), daemon=True)
        self._reader.start()

    def _pass_on(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                sys.stderr.write(f"[{self.label}] {line}")

    def _pause_after(self, code: int, lived: float) -> float | None:
        """Seconds until the place is filled again; None if it is not."""
        if code in (0, BAD_INPUT):
            return None
        if code in STOPPED:
            log.warning("%s was stopped", self.label)
            return None
        self._deaths = 1 if lived >= STEADY_SECONDS else self._deaths + 1
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        if self._deaths > RESTARTS:
            log.error("%s ended %s and is given up", self.label, how)
            return None
        pause: float = PAUSE_SECONDS * 2 ** (self._deaths - 1)
        log.warning("%s ended %s; it is started again in %.0f s", self.label, how, pause)
        return pause

    def _close(self) -> None:
        """Forget the process, which has ended."""
        assert self.process is not None
        assert self._reader is not None
        self._reader.join(READ_SECONDS)
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process = None


def run_children(children: Sequence[Child]) -> None:
    """Run all until they end by themselves; one that dies is started again a few times.

    Raises:
        UserError: all refused their input; they have said why.
        TransientError: all met a fault that may pass, and were started again in vain.
        MqasearchError: none ended well.
    """
    with _stopped_at_the_end(children):
        left = list(children)
        while left := [child for child in left if child.tend()]:
            time.sleep(POLL_SECONDS)
    codes = {child.code for child in children}
    if 0 in codes:
        return  # a worker ends well only when nothing is left to do
    if codes == {BAD_INPUT}:
        raise UserError("no worker could start; each has said above why")
    if codes == {TransientError.exit_code}:
        raise TransientError("every worker ended before the study did; try again: see above why")
    raise MqasearchError("every worker ended before the study did; see above")


@contextlib.contextmanager
def _stopped_at_the_end(children: Sequence[Child]) -> Iterator[None]:
    try:
        yield
    finally:
        for child in children:
            if child.process is not None:
                child.process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        for child in children:
            child.stop(deadline)
