"""A signal ends a command wherever it arrives."""

import signal
import subprocess
import sys

import pytest

START = """
import gc, os, signal, sys, time, weakref
from mqasearch.cli.signals import Signals, Stopped
from mqasearch.interruption import undisturbed
module = sys.modules[Signals.__module__]

def tell(*_):
    gc.callbacks.clear()  # a second signal would end the process at once
    os.kill(os.getpid(), signal.{name})
    for _ in range(100):  # the interruption comes between two instructions
        pass

class Thing:
    pass

class Finalized:
    def __del__(self):
        tell()

signals = Signals()
signals.install()
deadline = time.monotonic() + 20
try:
    {code}
    while time.monotonic() < deadline:
        time.sleep(0.001)
except Stopped:
    sys.exit(128 + signals.received)
"""

PLACES = {
    "anywhere": "tell()",
    "callback of a weak reference": "it = Thing(); ref = weakref.ref(it, tell); del it",
    "finalizer": "it = Finalized(); del it",
    "undisturbed block": "with undisturbed(): tell(); written = True",
    "endless block": "module.LATEST = 0.1\n    with undisturbed(): tell(); time.sleep(30)",
    "garbage collector": "gc.callbacks.append(tell); gc.collect()",
}


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("code", PLACES.values(), ids=PLACES)
def test_a_signal_is_never_lost_and_leaves_no_traceback(name: str, code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", START.format(name=name, code=code)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 128 + getattr(signal, name)
    assert done.stderr == ""


def test_other_exceptions_that_python_drops_are_still_reported() -> None:
    code = (
        "from mqasearch.cli.signals import Signals\n"
        "Signals().install()\n"
        "class Faulty:\n"
        "    def __del__(self): raise ValueError('a fault')\n"
        "it = Faulty(); del it\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "ValueError: a fault" in done.stderr
