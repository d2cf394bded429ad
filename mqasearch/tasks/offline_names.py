"""Names of tasks: those that need no hub, and all that lm-eval knows."""

import os
import re
from collections.abc import Iterator
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from mqasearch.errors import UnknownNameError

UPSTREAM_FOLDERS = (
    "hellaswag",
    "piqa",
    "winogrande",
    "arc",
    "openbookqa",
    "sciq",
    "siqa",
    "commonsense_qa",
    "super_glue/copa",
    "mmlu/default",
)
"""Folders of lm-eval's tasks that hold the offline tasks' YAML files."""

_BENCHMARKS = (
    "hellaswag",
    "piqa",
    "winogrande",
    "arc_easy",
    "arc_challenge",
    "openbookqa",
    "sciq",
    "social_iqa",
    "commonsense_qa",
    "copa",
    "mmlu",
)
_MMLU_PARTS = ("stem", "other", "social_sciences", "humanities")

_KEY = re.compile(r"""^["']?(task|group|tag)["']?[ \t]*:(.*(?:\n[ \t]*-.*)*)""", re.MULTILINE)
_WORD = re.compile(r"""[^\s"'\[\],]+""")


@cache
def tasks_folder() -> Path:
    """The folder of the installed lm-eval's tasks; lm-eval is not imported."""
    package = find_spec("lm_eval")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "tasks"


@cache
def offline_task_names() -> tuple[str, ...]:
    """Tasks and groups whose documents the assets hold: no hub is needed for them."""
    subjects = (path.stem for path in (tasks_folder() / "mmlu/default").glob("mmlu_*.yaml"))
    return (*_BENCHMARKS, *(f"mmlu_{part}" for part in _MMLU_PARTS), *sorted(subjects))


@cache
def all_task_names() -> tuple[str, ...]:
    """All tasks, groups and tags of the installed lm-eval, sorted.

    A pattern finds them in its 14,000 YAML files in half a second; lm-eval's own index takes ten.
    """
    names: set[str] = set()
    for folder, _, files in os.walk(tasks_folder()):
        for file in files:
            # Templates, which other files include, often have no extension.
            if file.endswith("yaml") or "." not in file:
                names.update(_names_in(Path(folder, file).read_text(encoding="utf-8")))
    return tuple(sorted(names))


def _names_in(text: str) -> Iterator[str]:
    for key, value in _KEY.findall(text):
        lines = [line.split(" #")[0].strip() for line in value.split("\n")]
        head, items = lines[0], [line.removeprefix("-") for line in lines[1:]]
        # A group lists its members under "task"; this list does not define names.
        for line in [head, *items] if key == "tag" else [head]:
            yield from (word for word in _WORD.findall(line) if word != "null")


def check_task_name(name: str) -> None:
    """Refuse a name that lm-eval does not know.

    Raises:
        UnknownNameError: the name is unknown; the message has the nearest known name and the
            offline benchmarks.
    """
    if name in offline_task_names() or name in all_task_names():
        return
    near = get_close_matches(name, [*offline_task_names(), *all_task_names()], n=1, cutoff=0.6)
    hint = "'mqasearch tasks --all' lists all that lm-eval knows, for which a hub is needed"
    raise UnknownNameError("task", name, {*_BENCHMARKS, *near}, hint)
