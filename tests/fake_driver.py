"""A driver that speaks the protocol of engines without an engine: it reads sizes from the disk.

Some settings and requests make it fail, so that tests can ask for faults.
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, os.environ["FAKE_DRIVER_FOLDER"])

import driver

CHILD = [sys.executable, "-c", "import time; time.sleep(600)"]


def load(settings):
    """The version names what it was started with, and the id of a process that it has started."""
    if settings["model"] == "absent":
        raise ValueError("no model there\nand more about it")
    if settings["model"] == "deadly":
        print("the engine has no such kernel", file=sys.stderr)
        os._exit(1)
    child = subprocess.Popen(CHILD) if settings["model"] == "with a child" else None
    print("junk while it loads")
    version = json.dumps({"child": child and child.pid, "settings": settings})
    known = (log_probs, generate, time)
    asked = {ask.__name__: ask for ask in known}
    return version, asked | {
        "cache_bytes_per_token": lambda: cache_bytes_per_token(settings["model"])
    }


def log_probs(tokens):
    """Zeros, after junk that Python prints and junk on the file descriptor of an engine in C."""
    print("junk")
    os.write(1, b'{"answer": "junk"}\n')
    return [[0.0] * (len(prompt) - 1) for prompt in tokens]


def generate(tokens, n_tokens):
    """Zeros; fails if it is asked for no tokens, and dies if it is asked for fewer."""
    if n_tokens == 0:
        raise ValueError("not so many\nand more about it")
    if n_tokens < 0:
        print("the engine's last words", file=sys.stderr)
        os._exit(1)
    return [[0] * n_tokens for _ in tokens]


def cache_bytes_per_token(folder):
    """Bytes of keys and values in float32, as many as the checkpoint's projections give."""
    (weights,) = Path(folder).glob("*.safetensors")
    with weights.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    names = ("k_proj.weight", "v_proj.weight")
    return 4 * sum(entry["shape"][0] for name, entry in header.items() if name.endswith(names))


def time(context, batch_size, n_tokens):
    """Prefill and decoding take about a second each."""
    return {"prefill": random.uniform(0.9, 1.1), "decode": random.uniform(0.9, 1.1)}


if __name__ == "__main__":
    driver.serve(load)
