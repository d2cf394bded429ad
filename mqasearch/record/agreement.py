"""Whether two workers' scores can be compared: what differs, in words, and what to do about it.

Packages and tasks are compared only if both sides name them: if one side did not write a version
down, it is not known to differ.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

Facts = Mapping[str, Any]
"""``ModelFacts`` as plain data, or a part of it."""

_NAMES = {
    "fingerprint": "model fingerprint:",
    "tokenizer": "tokenizer",
    "dtype": "dtype",
    "merge": "merge",
    "calibration": "calibration",
    "code": "mqasearch's scoring code",
}
_CURES = {
    "fingerprint": "give this worker the weights that the study uses",
    "tokenizer": "give this worker the tokenizer that the study uses",
    "dtype": "use a device that computes in the study's dtype",
    "calibration": "give this worker the benchmark data that the study uses",
    "tasks": "give this worker the task files that the study uses",
    "code": "give this worker the mqasearch that the study uses",
}
_ANOTHER = "create another study (with another name in the study file)"
_LATER = ("tokenizer", "code")
"""Keys that are empty if the study's first worker was of a version that did not write them."""
_DIGEST = re.compile(r"[0-9a-f]{32,}")


def differences(ours: Facts, theirs: Facts) -> list[str]:
    """Each thing that differs, as ``mqasearch 0.1.0 here, 0.2.0 in the study``."""
    rows = [
        f"{name} {_short(ours[key])} here, {_short(theirs[key])} in the study"
        for key, name in _NAMES.items()
        if _differs(ours, theirs, key)
    ]
    rows += [
        f"{package} {mine} here, {other} in the study"
        for package, mine, other in _apart(ours, theirs, "versions")
    ]
    rows += [
        f"task {task} of version {mine} here, {other} in the study"
        for task, mine, other in _apart(ours, theirs, "tasks")
    ]
    return rows


def remedies(ours: Facts, theirs: Facts) -> str:
    """What to do about the differences, in one sentence."""
    if packages := list(_apart(ours, theirs, "versions")):
        # All other differences may follow from those of the packages.
        wanted = [f"{name}=={other.partition('+')[0]}" for name, _, other in packages]
        return f"pip install {' '.join(wanted)}, or {_ANOTHER}"
    cures = [cure for key, cure in _CURES.items() if _differs(ours, theirs, key)]
    return f"{' and '.join(cures)}, or {_ANOTHER}" if cures else _ANOTHER


def _differs(ours: Facts, theirs: Facts, key: str) -> bool:
    if key == "tasks":
        return any(_apart(ours, theirs, key))
    if key in _LATER and not (ours.get(key) and theirs.get(key)):
        return False
    if key == "code" and any(_apart(ours, theirs, "versions")):
        return False  # reported already: other packages give another code digest
    return key in theirs and bool(ours[key] != theirs[key])


def _apart(ours: Facts, theirs: Facts, key: str) -> Iterator[tuple[str, str, str]]:
    """Name, our version and theirs, for each entry that both sides have and that differs.

    The build of a package ("+cpu") is left out: a study may have GPUs and CPUs at work.
    """
    mine, others = ours.get(key, {}), theirs.get(key, {})
    for name in mine:
        if name in others and mine[name].partition("+")[0] != others[name].partition("+")[0]:
            yield name, mine[name], others[name]


def _short(value: str) -> str:
    """The value with each digest cut to 12 characters; ``none`` for an empty value."""
    return _DIGEST.sub(lambda digest: digest[0][:12], value) or "none"
