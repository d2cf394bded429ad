"""A study file whose names exist: of its model, tasks, metrics, selectors and merge."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mqasearch.conversion import merge_of
from mqasearch.errors import SpecError, UserError
from mqasearch.score import ZERO_ONE
from mqasearch.scoring import check_model_name
from mqasearch.selectors import RECOMMENDED, check_parameters
from mqasearch.spec import (
    Entry,
    MergeEntry,
    ModelEntry,
    SelectorEntry,
    StudySpec,
    TaskEntry,
    named_entries,
    parse_spec,
    read_yaml,
)
from mqasearch.statistics import least_documents
from mqasearch.tasks import higher_is_better
from mqasearch.tolerance import ToleranceEntry


def load_study(path: Path) -> StudySpec:
    """Read a study file that somebody wrote.

    Raises:
        SpecError: unreadable, not YAML, or with faults; all of them at once.
    """
    return checked_study(read_yaml(path), str(path))


def checked_study(data: object, where: str) -> StudySpec:
    """Validate what a study file holds, with the names in it.

    A file without ``selectors`` and without ``enqueue`` takes the recommended selectors.

    Args:
        data: the file's content, as YAML gives it.
        where: what error messages call it.

    Raises:
        SpecError: every fault, one line each.
    """
    if not isinstance(data, Mapping):
        return parse_spec(data, where)  # which says what it expects
    data = _with_selectors(data)
    faults: list[str] = []
    spec = None
    try:
        spec = parse_spec(data, where)
    except SpecError as error:
        faults += error.faults
    faults += [f"{path}: {fault}" for path, entry in named_entries(data) if (fault := _said(entry))]
    if spec is not None and not faults:
        faults += _faults_together(spec)
    if spec is None or faults:
        raise SpecError(where, faults)
    return spec


def maximizes(tasks: Mapping[str, str]) -> bool:
    """Whether a larger objective is better: a weighted mean of one metric of each task.

    Args:
        tasks: name → metric.

    Raises:
        UnknownNameError: no such task, or no such metric on it.
        UserError: some of the metrics rise and others fall.
    """
    ways = {name: higher_is_better(name, metric) for name, metric in tasks.items()}
    if len({*ways.values()}) > 1:
        said = ", ".join(
            f"{metric} of {name} {'rises' if ways[name] else 'falls'}"
            for name, metric in tasks.items()
        )
        raise UserError(
            f"tasks: one objective cannot both rise and fall ({said}); "
            "choose metrics of the same direction"
        )
    return all(ways.values())


def _with_selectors(data: Mapping[str, Any]) -> Mapping[str, Any]:
    if "selectors" in data or "enqueue" in data:  # an empty list is a choice too
        return data
    chosen = [{"name": name, **parameters} for name, parameters in RECOMMENDED.items()]
    return {**data, "selectors": chosen}


def _said(entry: Entry) -> str:
    """What is wrong with the name of an entry, or with its parameters; empty if nothing is."""
    try:
        match entry:
            case ModelEntry():
                check_model_name(entry.name)
            case TaskEntry():
                higher_is_better(entry.name, entry.metric)
            case SelectorEntry():
                check_parameters(entry.name, entry.parameters)
            case MergeEntry():
                merge_of(entry.name, **entry.parameters)
    except UserError as error:
        return str(error)
    return ""


def _faults_together(spec: StudySpec) -> Iterator[str]:
    """What is wrong with a study each of whose names exists."""
    try:
        maximizes(spec.metrics)
    except UserError as error:
        yield str(error)
    for entry in spec.tolerance:
        if fault := _never_shown(spec, entry):
            yield f"tolerance: {fault}"


def _never_shown(spec: StudySpec, entry: ToleranceEntry) -> str:
    """Why no search could ever show a tolerance; empty if one could."""
    said = [_missing(task, entry.metric) for task in spec.metrics if entry.covers(task)]
    if all(said):
        return said[0]
    # A mean of anything but zeros and ones may not vary at all: two documents could show its loss.
    least = least_documents(entry.margin) if entry.metric in ZERO_ONE else 2
    n_docs = spec.documents.confirmation
    if n_docs is not None and n_docs < least:
        return (
            f"{n_docs} held-out documents can never show {entry.metric} {entry.words}, even "
            f"if no answer changes; give documents.confirmation {least} or more, or more points"
        )
    return ""


def _missing(task: str, metric: str) -> str:
    """Why a task has no such metric; empty if it has."""
    try:
        higher_is_better(task, metric)
    except UserError as error:
        return str(error)
    return ""
