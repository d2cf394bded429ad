"""A study file on the fake model, for tests that run the command line."""

from collections.abc import Callable
from pathlib import Path

import yaml

Mqasearch = Callable[[str], tuple[int, str, str]]
"""A command line → exit code, stdout, stderr."""

STUDY = {
    "name": "demo",
    "model": "fake:8",
    "budget": 3,
    "tasks": ["hellaswag"],
    "documents": {"search": 20, "confirmation": 40},
    "selectors": ["greedy", {"name": "tpe", "n_trials": 6}],
}


def write_study(path: Path, **changes: object) -> Path:
    path.write_text(yaml.safe_dump(STUDY | changes))
    return path
