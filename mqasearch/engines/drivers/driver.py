"""The loop that every engine's driver runs: one JSON request per line, one JSON answer per line.

A driver runs in the engine's own environment, as a script, and imports nothing of mqasearch.
The engine may print anything, since its stdout goes to stderr.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any


def serve(load: Callable[[dict[str, Any]], tuple[str, Mapping[str, Callable[..., Any]]]]) -> None:
    """Load a model, then answer requests until stdin ends.

    The first line of stdin holds the settings, the first line of stdout the engine's version. Each
    further line is ``{"ask": name, ...arguments}``; its answer is ``{"answer": ...}``, or
    ``{"error": "one line"}``, after which the driver goes on.

    Args:
        load: takes the settings (``Settings`` in ``engine.py``) and returns the engine's version
            and the functions that answer requests, by name.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(what: dict[str, Any]) -> None:
        answers.write(json.dumps(what) + "\n")
        answers.flush()

    try:
        version, known = load(json.loads(sys.stdin.readline()))
    except Exception as error:
        say({"error": _line(error)})
        raise
    say({"answer": version})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            say({"answer": known[request.pop("ask")](**request)})
        except Exception as error:
            say({"error": _line(error)})


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"
