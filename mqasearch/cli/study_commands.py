"""``create, worker, status, compare, export``: the life of a study, step by step."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mqasearch.cli.options import (
    DEFAULT_STORAGE,
    Device,
    Format,
    OutputFormat,
    Storage,
    StudyFile,
    StudyName,
    TrustRemoteCode,
)
from mqasearch.errors import ScoreError

if TYPE_CHECKING:
    import optuna

    from mqasearch.errors import ScoreError
    from mqasearch.record import Storage as OpenStorage
    from mqasearch.study import Verdict
    from mqasearch.worker import Limits

Output = Annotated[Path, typer.Option("-o", "--output", help="The file to write.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (create, worker, status, compare, export):
        app.command()(command)


def create(study: StudyFile, storage: Storage = DEFAULT_STORAGE) -> None:
    """Create the studies of a study file, for workers to take up."""
    from mqasearch.creation import load_study
    from mqasearch.worker import create as create_all

    for name in create_all(open_database(storage), load_study(study)):
        print(name)


def worker(
    study_name: StudyName,
    storage: Storage = DEFAULT_STORAGE,
    device: Device = "auto",
    n_trials: Annotated[int | None, typer.Option(min=1, help="Stop after so many.")] = None,
    timeout: Annotated[
        float | None, typer.Option(min=0, help="Start no trial after so many seconds.")
    ] = None,
    idle_timeout: Annotated[
        float | None, typer.Option(min=0, help="Stop after so many seconds without work.")
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Score trials of a study until none is left; start as many workers as you have devices."""
    from mqasearch.worker import Limits

    limits = Limits(n_trials, timeout, idle_timeout)
    score_trials(study_name, storage, device, limits, trust_remote_code=trust_remote_code)
    if ending := ending_of(storage, study_name):
        raise ScoreError(ending)


def score_trials(
    study_name: str,
    storage: str,
    device: str,
    limits: "Limits | None" = None,
    *,
    trust_remote_code: bool = False,
) -> None:
    """Do a worker's work on a study, and print how many trials it has done."""
    from mqasearch.cli.progress import Progress
    from mqasearch.worker import NO_LIMITS, work

    opened = open_database(storage, create=False)
    with Progress() as progress:
        done = work(
            opened,
            study_name,
            device=device,
            limits=limits or NO_LIMITS,
            watcher=progress.watcher,
            trust_remote_code=trust_remote_code,
        )
    print(f"{done} trials done")


def status(
    storage: Storage = DEFAULT_STORAGE,
    study_name: Annotated[str | None, typer.Option("--study-name", help="One only.")] = None,
    format: OutputFormat = Format.TABLE,
) -> None:
    """Show every study, its trials by state and best value so far, and who is at work."""
    from mqasearch.cli.printed_tables import print_json, print_rows
    from mqasearch.study import STATUS_HEADERS, WORKER_HEADERS, endings, study_rows, worker_rows

    opened = _open_to_look(storage)
    studies, workers = list(study_rows(opened.optuna, study_name)), list(worker_rows(opened))
    if format is Format.JSON:
        tables = {"studies": (STATUS_HEADERS, studies), "workers": (WORKER_HEADERS, workers)}
        print_json(
            {
                name: [dict(zip(headers, row, strict=True)) for row in rows]
                for name, (headers, rows) in tables.items()
            }
        )
        return
    print_rows(STATUS_HEADERS, studies, format)
    if format is Format.TABLE:
        for line in endings(opened.optuna, study_name):
            print(line)
    if workers:
        print()
        print_rows(WORKER_HEADERS, workers, format)


def compare(
    study_name: StudyName, storage: Storage = DEFAULT_STORAGE, format: OutputFormat = Format.TABLE
) -> None:
    """Show the selectors of a comparison side by side."""
    print_comparison(storage, study_name, format)
    if format is Format.TABLE:
        print_verdict(storage, study_name)


def export(
    study_name: StudyName,
    output: Output,
    storage: Storage = DEFAULT_STORAGE,
    selector: Annotated[str | None, typer.Option(help="This one's best mask only.")] = None,
) -> None:
    """Write the best mask of each selector, and the front over budgets, as JSON."""
    from mqasearch.errors import UnknownNameError, UserError
    from mqasearch.export import export as export_masks
    from mqasearch.export import write_masks

    studies = _studies(storage, study_name)
    document = export_masks(study_name, studies, verdict_of(storage, study_name))
    if selector is not None:
        masks = [m for m in document["masks"] if m["study"]["selector"] == selector]
        if not masks:
            known = {mask["study"]["selector"] for mask in document["masks"]}
            raise UnknownNameError("selector", selector, known)
        if len(masks) > 1:
            names = ", ".join(mask["study"]["name"] for mask in masks)
            raise UserError(
                f"study {study_name!r} has a {selector} for each of its budgets; give one of "
                f"them as --study-name: {names}"
            )
        (document,) = masks
    write_masks(document, output)
    print(output)


def open_database(storage: str, *, create: bool = True, read_only: bool = False) -> "OpenStorage":
    """Open a database, with Optuna's own log reduced to errors."""
    import optuna

    from mqasearch.record import open_storage

    optuna.logging.set_verbosity(optuna.logging.ERROR)  # our own log says more in one line
    return open_storage(storage, create=create, read_only=read_only)


def _open_to_look(storage: str, name: str | None = None) -> "OpenStorage":
    """Open a database for writing if it may be written, else for reading only.

    If it may be written, what workers have finished of the study file with ``name`` is recorded
    first, since a killed worker may have left something unrecorded.
    """
    from mqasearch.errors import ReadOnlyError
    from mqasearch.study import bring_up

    try:
        opened = open_database(storage, create=False)
    except ReadOnlyError:
        return open_database(storage, create=False, read_only=True)
    if name is not None:
        bring_up(opened.optuna, name)
    return opened


def ending_of(storage: str, name: str) -> str:
    """Why the study ended before it was done; empty if it did not."""
    from mqasearch.study import endings

    lines = endings(_open_to_look(storage, name).optuna, name)
    return "; ".join(lines)


def _studies(storage: str, name: str) -> "list[optuna.Study]":
    import optuna

    from mqasearch.study import find_studies

    opened = _open_to_look(storage, name)
    return [
        optuna.load_study(study_name=study, storage=opened.optuna)
        for study in find_studies(opened.optuna, name)
    ]


def print_comparison(storage: str, name: str, format: Format) -> "list[optuna.Study]":
    """Print the comparison to stdout, and return its studies."""
    from dataclasses import asdict

    from mqasearch.cli.printed_tables import comparison_table, console, print_json
    from mqasearch.study import compare as compare_studies

    studies = _studies(storage, name)
    rows = compare_studies(studies)
    if format is Format.JSON:
        print_json([asdict(row) for row in rows])
    else:
        console().print(comparison_table(name, rows))
    return studies


def verdict_of(storage: str, name: str) -> "Verdict | None":
    """The verdict of the study file that ``name`` is a part of."""
    from mqasearch.study import studies_of_file, verdict

    return verdict(studies_of_file(_open_to_look(storage, name).optuna, name))


def print_verdict(storage: str, name: str) -> None:
    """Print the verdict to stdout, if the study file asks for one."""
    from mqasearch.cli import printed_tables

    if (found := verdict_of(storage, name)) is not None:
        printed_tables.print_verdict(found)
