"""``demo`` and ``run``: the main job from its beginning to its end, for a study file or a model."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mqasearch.cli.choices import Choices, is_model, more_trials, refuse_for_file
from mqasearch.cli.launch_commands import Workers
from mqasearch.cli.options import Device, Format, GivenStorage, TrustRemoteCode
from mqasearch.cli.run_options import (
    Budget,
    ConfirmationDocuments,
    Dtype,
    Latency,
    MoreTrials,
    NameOfStudy,
    NumbersOfHeads,
    OutputDir,
    Revision,
    SearchDocuments,
    Target,
    Tasks,
    Tolerances,
)
from mqasearch.cli.study_commands import (
    ending_of,
    open_database,
    print_comparison,
    print_verdict,
    verdict_of,
)
from mqasearch.errors import ScoreError

if TYPE_CHECKING:
    from mqasearch.creation import More
    from mqasearch.record import Storage
    from mqasearch.spec import StudySpec

STUDY_FILE = "study.yaml"
"""The file of the study that was run on a model; it lies beside the results."""


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(demo)
    app.command()(run)


def demo(
    output_dir: Annotated[Path, typer.Option(help="Where the results go.")] = Path("demo"),
    device: Device = "auto",
) -> None:
    """Run the main job on the embedded model and benchmark."""
    from importlib.resources import as_file, files

    output_dir.mkdir(parents=True, exist_ok=True)
    with as_file(files("mqasearch.cli") / "demo.yaml") as study:
        run(str(study), f"sqlite:///{output_dir / 'mqasearch.db'}", device, output_dir)


def run(
    study: Target,
    storage: GivenStorage = None,
    device: Device = "auto",
    output_dir: OutputDir = Path("."),
    workers: Workers = None,
    n_trials: MoreTrials = None,
    budget: Budget = None,
    latency: Latency = None,
    kv_heads: NumbersOfHeads = None,
    task: Tasks = None,
    tolerance: Tolerances = None,
    documents: SearchDocuments = None,
    confirmation: ConfirmationDocuments = None,
    dtype: Dtype = None,
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    study_name: NameOfStudy = None,
) -> None:
    """Create the studies, work, compare, confirm and export; may be interrupted and run again."""
    chosen = Choices(
        budget=budget,
        kv_heads=kv_heads,
        latency=latency,
        task=task,
        tolerance=tolerance,
        documents=documents,
        confirmation=confirmation,
        dtype=dtype,
        revision=revision,
        trust_remote_code=trust_remote_code,
        study_name=study_name,
    )
    more = None if n_trials is None else more_trials(n_trials)
    if is_model(study):
        path = output_dir / STUDY_FILE
        _run(_study_of(study, chosen, path), storage, device, workers, output_dir, more, path)
    else:
        from mqasearch.creation import load_study

        refuse_for_file(chosen, study)
        spec = load_study(Path(study))
        _run(spec, storage, device, workers, output_dir, more)


def _study_of(model: str, chosen: Choices, path: Path) -> "StudySpec":
    """The default study of a model, or the one that an earlier run of it has left."""
    from mqasearch.creation import default_study, joined, load_study

    given = chosen.as_data()
    if not path.exists():
        return default_study(model, given)
    return joined(load_study(path), model, given, str(path))


def _run(
    spec: "StudySpec",
    storage: str | None,
    device: str,
    workers: int | None,
    output_dir: Path,
    more: "More | None" = None,
    study_file: Path | None = None,
) -> None:
    """The main job; the study is written to ``study_file`` once it is known to be one."""
    from mqasearch.cli.launch_commands import database, default_workers, work_together
    from mqasearch.cli.progress import Progress
    from mqasearch.creation import check_extendable
    from mqasearch.worker import create, sized, work

    if more is not None:
        check_extendable(spec)
    _check_folder(output_dir)
    n_workers = workers or default_workers(device)
    trusts = spec.model.trust_remote_code  # from the user's own file or command line
    with database(storage, spec.name, n_workers) as place:
        opened = open_database(place.url)
        create(opened, spec)
        if study_file is not None:
            _write_study(spec, study_file)
        if more is not None:
            _add_trials(opened, spec.name, more)
        if n_workers == 1:
            with Progress() as progress:
                work(
                    opened,
                    spec.name,
                    device=device,
                    watcher=progress.watcher,
                    trust_remote_code=trusts,
                )
        else:
            work_together(place, spec.name, device, n_workers, trust_remote_code=trusts)
        ending = ending_of(place.url, spec.name)
        _print_results(sized(spec), place.url, output_dir, complete=not ending)
        if study_file is not None:
            print(f"study file: {study_file}")
        if not place.held and not ending:  # else the database ends with this run
            _print_next_steps(opened.url_hidden, spec.name)
    if ending:
        raise ScoreError(ending)


def _add_trials(storage: "Storage", name: str, more: "More") -> None:
    from mqasearch.worker import add_trials

    log = logging.getLogger("mqasearch")
    changed = add_trials(storage, name, more)
    for study, (had, has) in changed.items():
        log.info("%s: %d → %d trials", study, had, has)
    if changed:
        log.info("if this is interrupted, go on without --n-trials")
    else:
        log.info("no selector had fewer than %d trials", more.n)


def _print_results(spec: "StudySpec", storage: str, output_dir: Path, *, complete: bool) -> None:
    """Print each budget's table and write its masks as JSON; all must exist if ``complete``."""
    from mqasearch.errors import NoMaskError
    from mqasearch.export import export, write_masks

    for name in spec.comparisons():
        target = output_dir / ("masks.json" if name == spec.name else f"{name}.masks.json")
        studies = print_comparison(storage, name, Format.TABLE)
        try:
            document = export(name, studies, verdict_of(storage, name))
        except NoMaskError:
            if complete:
                raise
            continue
        write_masks(document, target)
        print(f"masks: {target}")
    print_verdict(storage, spec.name)


def _check_folder(path: Path) -> None:
    """Check, before hours of work, that there is a folder for the results."""
    from mqasearch.errors import UserError

    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        said = error.strerror or error
        raise UserError(f"--output-dir {path}: {said}; give a folder that can be written") from None


def _write_study(spec: "StudySpec", path: Path) -> None:
    """Write the study, unless the file says the same already in the user's own words."""
    from mqasearch.creation import load_study
    from mqasearch.errors import UserError
    from mqasearch.files import write_whole
    from mqasearch.spec import study_text

    if path.exists() and load_study(path) == spec:
        return
    heading = f"What was run on {spec.model.name}; the same again: mqasearch run {path}"
    try:
        write_whole(path, study_text(spec, heading))
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None


def _print_next_steps(storage: str, name: str) -> None:
    print(f"dashboard: mqasearch dashboard --storage {storage}")
    print(f"another worker: mqasearch worker --storage {storage} --study-name {name}")
