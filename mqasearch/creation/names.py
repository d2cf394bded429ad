"""Reads a study file and checks that its model, tasks, metrics, selectors and merge exist."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mqasearch.creation.latency_file import with_times
from mqasearch.errors import SpecError, UserError, unknown_name
from mqasearch.merging import merge_of
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
        SpecError: the file cannot be read, is not YAML, or has faults; all faults at once.
    """
    return checked_study(read_yaml(path), str(path))


def checked_study(data: object, where: str) -> StudySpec:
    """Validate the content of a study file, and the names in it.

    A file without ``selectors`` and without ``enqueue`` gets the recommended selectors. A budget
    that names a file of ``mqasearch latency`` gets the times in it.

    Args:
        data: the file's content, as read from YAML.
        where: what error messages call the file.

    Raises:
        SpecError: the file has faults; the error has one line for each.
    """
    if not isinstance(data, Mapping):
        return parse_spec(data, where)  # raises an error that says what is expected
    data, faults = with_times(_with_selectors(data))
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
    """Whether a larger objective (a weighted mean of one metric of each task) is better.

    Args:
        tasks: name → metric.

    Raises:
        UnknownNameError: there is no such task, or the task has no such metric.
        UserError: for some of the metrics more is better, for others less.
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
    """The faults of a study whose names all exist."""
    try:
        maximizes(spec.metrics)
    except UserError as error:
        yield str(error)
    for entry in spec.tolerance:
        if fault := _never_shown(spec, entry):
            yield f"tolerance: {fault}"


def _never_shown(spec: StudySpec, entry: ToleranceEntry) -> str:
    """Why no search could ever show that a tolerance is kept; empty if one could."""
    if entry.task is not None and entry.task not in spec.metrics:
        return unknown_name("task", entry.task, spec.metrics)
    said = [_missing(task, entry.metric) for task in spec.metrics if entry.covers(task)]
    if all(said):
        return said[0]
    # If values are not 0 or 1, their differences may not vary at all: two documents could suffice.
    least = least_documents(entry.margin) if entry.metric in ZERO_ONE else 2
    n_docs = spec.documents.confirmation
    if n_docs is not None and n_docs < least:
        return (
            f"{n_docs} held-out documents can never show {entry.metric} {entry.words}, even "
            f"if no answer changes; give documents.confirmation {least} or more, or more points"
        )
    return ""


def _missing(task: str, metric: str) -> str:
    """Why a task has no such metric; empty if it has the metric."""
    try:
        higher_is_better(task, metric)
    except UserError as error:
        return str(error)
    return ""
