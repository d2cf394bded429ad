"""A process of its own: keeps PostgreSQL up for as long as anybody holds its standard input.

The pipe's other end is held by ``mqasearch run`` and by each of its workers, so the database ends
after the last of them, however they end: workers of a killed run can still give their trials back.
Nothing but the standard library is imported here, so that it is small.

Exit codes: 0 done, 3 another process keeps this folder, 4 PostgreSQL does not start.
"""

import argparse
import fcntl
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

IN_USE, BROKEN = 3, 4
LOOK_SECONDS = 0.5
STOP_SECONDS = 30
STEADY_SECONDS = 60
"""A server that ends sooner than this after its start is not started again."""


def main() -> int:
    """Run until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lock", type=Path, required=True)
    parser.add_argument("--patience", type=float, required=True)
    parser.add_argument("--user")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # only its pipe ends it
    with options.lock.open("a") as lock:
        if not _locked(lock.fileno(), options.patience):
            return IN_USE
        lock.truncate(0)
        print(os.getpid(), file=lock, flush=True)  # from now on the server here is ours
        return _keep(options.command, options.user)


def _locked(file: int, patience: float) -> bool:
    """Whether the file is locked now; waits for the keeper of a run that has just ended."""
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline or _ended(LOOK_SECONDS):
                return False
        else:
            return True


def _keep(command: list[str], user: str | None) -> int:
    started = time.monotonic()
    server = _start(command, user)
    try:
        while not _ended(LOOK_SECONDS):
            if server.poll() is None:
                continue
            if time.monotonic() - started < STEADY_SECONDS:
                return BROKEN
            print("PostgreSQL ended; it is started again", file=sys.stderr, flush=True)
            started = time.monotonic()
            server = _start(command, user)
    finally:
        _stop(server)
    return 0


def _start(command: list[str], user: str | None) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, user=user)  # noqa: S603


def _ended(seconds: float) -> bool:
    """Whether nobody holds the pipe any more; waits for that at most ``seconds``."""
    readable, _, _ = select.select([0], [], [], seconds)
    return bool(readable) and not os.read(0, 1024)


def _stop(server: subprocess.Popen[bytes]) -> None:
    """Cut the connections and write all data to the disk: PostgreSQL's fast shutdown."""
    server.send_signal(signal.SIGINT)
    try:
        server.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        server.send_signal(signal.SIGQUIT)  # at once; it recovers at its next start
        server.wait()


if __name__ == "__main__":
    sys.exit(main())
