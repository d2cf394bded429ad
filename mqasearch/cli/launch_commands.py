"""``launch``, and what ``run --workers`` needs: many workers, here or on a cluster."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mqasearch.cli.logs import options_for_children
from mqasearch.cli.options import DEFAULT_STORAGE, Storage, StudyName, TrustRemoteCode

if TYPE_CHECKING:
    from mqasearch.launch import Fleet

FOLDER = Path("mqasearch.pg")
"""Folder of the embedded PostgreSQL, in the place where SQLite would have mqasearch.db."""

Workers = Annotated[
    int | None,
    typer.Option(min=1, help="Worker processes on this machine; one per GPU by default."),
]


@dataclass(frozen=True)
class Database:
    """Where a run keeps its studies.

    Attributes:
        url: URL for this process and its workers.
        held: file descriptors that keep it running.
    """

    url: str = field(repr=False)
    held: tuple[int, ...] = ()


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(launch)
    app.command(hidden=True)(child)


def launch(
    study_name: StudyName,
    engine: Annotated[str, typer.Option(help="ray, slurm or kubernetes.")],
    workers: Annotated[int, typer.Option(min=1, help="How many.")],
    storage: Storage = DEFAULT_STORAGE,
    gpus_per_worker: Annotated[int, typer.Option(min=0, help="0: on the CPU.")] = 0,
    cpus_per_worker: Annotated[int, typer.Option(min=1, help="Cores of each.")] = 1,
    memory: Annotated[int | None, typer.Option(min=1, help="GiB of each.")] = None,
    time: Annotated[
        str | None, typer.Option(help="The longest they may run: 90m, 4h, 2d, HH:MM:SS.")
    ] = None,
    image: Annotated[str | None, typer.Option(help="Container image, for kubernetes.")] = None,
    output_dir: Annotated[Path, typer.Option(help="Where files are written.")] = Path("."),
    trust_remote_code: TrustRemoteCode = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be done or written.")
    ] = False,
) -> None:
    """Start workers on a Ray cluster, or write a Slurm script or a Kubernetes manifest."""
    from mqasearch.launch import Fleet, check_engine, check_shared, only_here, seconds_of

    check_engine(engine)
    seconds = None if time is None else seconds_of(time)
    fleet = Fleet(
        study_name,
        workers,
        gpus_per_worker,
        cpus_per_worker,
        memory,
        seconds,
        trust_remote_code=trust_remote_code,
    )
    _check_image(engine, image)
    url = check_shared(storage, engine)
    if engine == "ray":
        _check_ray()
    _check_study(storage, study_name)
    if engine == "ray":
        _launch_on_ray(fleet, storage, dry_run)
        return
    if only_here(url):
        typer.echo(
            "mqasearch: workers elsewhere will not find a database on this machine's loopback; "
            "write another host into their storage.env",
            err=True,
        )
    _write(fleet, engine, image, None if dry_run else output_dir)


def child(
    study_name: StudyName,
    parent: Annotated[int, typer.Option(help="Its process id.")],
    device: Annotated[str, typer.Option()] = "auto",
    storage: Storage = DEFAULT_STORAGE,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Be a worker of ``run --workers``, as long as that runs."""
    from mqasearch.cli.study_commands import score_trials
    from mqasearch.launch import end_with

    end_with(parent)
    # Not the command ``worker``: its exit code would have it started again, only to end again.
    score_trials(study_name, storage, device, trust_remote_code=trust_remote_code)


def _check_image(engine: str, image: str | None) -> None:
    from mqasearch.errors import UserError

    if engine == "kubernetes" and image is None:
        raise UserError(
            "kubernetes needs --image; make one with `docker build -f dashboards/Dockerfile` and "
            "push it to where the cluster gets its images"
        )
    if engine != "kubernetes" and image is not None:
        raise UserError(f"--image is for kubernetes; workers on {engine} run what is installed")


def _check_ray() -> None:
    from mqasearch.errors import UserError

    try:
        import ray  # noqa: F401
    except ImportError:
        raise UserError(
            "engine ray needs an extra; install it: pip install 'mqasearch[ray]'"
        ) from None


def _check_study(storage: str, name: str) -> None:
    from contextlib import closing

    from mqasearch.record import open_storage
    from mqasearch.study import find_studies

    with closing(open_storage(storage, create=False)) as opened:
        find_studies(opened.optuna, name)


def _launch_on_ray(fleet: "Fleet", storage: str, dry_run: bool) -> None:
    from mqasearch.launch.ray_tasks import resources, run_on_ray

    options = options_for_children()
    if dry_run:
        words = " ".join(["mqasearch", *options, *fleet.arguments])
        print(f"{fleet.n_workers} Ray task(s) {resources(fleet)}: {words}")
        return
    run_on_ray(fleet, storage, partial(ray_worker, options=options))


def ray_worker(url: str, fleet: "Fleet", options: tuple[str, ...] = ()) -> None:
    """Run one worker inside a Ray task, by the same command as everywhere."""
    import os

    from mqasearch.cli.app import app

    os.environ["OPTUNA_STORAGE"] = url
    limit = [] if fleet.seconds is None else [f"--timeout={fleet.seconds}"]
    app([*options, *fleet.arguments, *limit], standalone_mode=False)


def _write(fleet: "Fleet", engine: str, image: str | None, folder: Path | None) -> None:
    """Write the engine's file and print the next steps; without a folder, only print the file."""
    import sys

    from mqasearch.files import write_whole
    from mqasearch.launch import kubernetes, slurm

    if engine == "kubernetes":
        assert image is not None
        name, text = f"{kubernetes.job_name(fleet.study)}.yaml", kubernetes.manifest(fleet, image)
        steps = kubernetes.NEXT_STEPS
    else:
        name = f"mqasearch-{fleet.study}.sbatch"
        text = slurm.script(fleet, [sys.executable, "-m", "mqasearch"])
        steps = slurm.NEXT_STEPS
    if folder is None:
        print(text, end="")
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    write_whole(path, text)
    print(path)
    for step in steps:
        print(step.format(path=path))


@contextmanager
def database(storage: str | None, study: str, n_workers: int) -> "Iterator[Database]":
    """Where a run keeps its studies.

    Without a URL, one worker gets SQLite's file, and several get the embedded PostgreSQL, which
    runs for the length of the block. If SQLite's file holds the study already, several get this
    file too.
    """
    import logging

    from mqasearch.errors import UserError

    if storage is not None or n_workers == 1 or _holds(DEFAULT_STORAGE, study):
        yield Database(storage or DEFAULT_STORAGE)
        return
    try:
        from mqasearch.launch.postgres import embedded_postgres
    except ImportError:
        raise UserError(
            f"{n_workers} workers need PostgreSQL; install it: pip install 'mqasearch[postgres]', "
            f"or give --storage {DEFAULT_STORAGE}, or --workers 1"
        ) from None
    with embedded_postgres(FOLDER, n_workers) as embedded:
        log = logging.getLogger("mqasearch")
        log.info("until this run ends: mqasearch dashboard --storage '%s'", embedded.url)
        yield Database(embedded.url, (embedded.held,))
        print(f"database: {FOLDER}, up again with: mqasearch db serve")


def _holds(storage: str, study: str) -> bool:
    from mqasearch.errors import StorageError

    try:
        _check_study(storage, study)
    except StorageError:
        return False
    return True


def serve(
    folder: Annotated[Path, typer.Argument(help="Where `run --workers` left it.")] = FOLDER,
) -> None:
    """Have the embedded PostgreSQL of a run up until Ctrl-C, for dashboards and reports."""
    import shlex
    import signal

    from mqasearch.errors import StorageError
    from mqasearch.launch.postgres import embedded_postgres

    if not folder.is_dir():
        raise StorageError(f"{folder}: there is no such folder; `mqasearch run --workers` makes it")
    with embedded_postgres(folder, n_workers=16) as embedded:
        print(f"mqasearch dashboard --storage {shlex.quote(embedded.url)}", flush=True)
        while True:
            signal.pause()


def default_workers(device: str) -> int:
    """One worker for each GPU, if there are any and no device was named; else one."""
    from mqasearch.launch import gpus

    return max(1, gpus()) if device == "auto" else 1


def work_together(
    database: "Database",
    study: str,
    device: str,
    n_workers: int,
    *,
    trust_remote_code: bool = False,
) -> None:
    """Run workers as child processes until nothing is left to do."""
    import os
    import sys

    from mqasearch.forward import SHARERS_VARIABLE
    from mqasearch.launch import Child, devices_for, run_children, threads_for

    devices = devices_for(device, n_workers)
    environment = {
        SHARERS_VARIABLE: str(max(map(devices.count, devices))),
        "OMP_NUM_THREADS": str(threads_for(n_workers)),
        "RAYON_NUM_THREADS": str(threads_for(n_workers)),
        **os.environ,
        "OPTUNA_STORAGE": database.url,
    }
    command = [sys.executable, "-m", "mqasearch", *options_for_children()]
    command += ["child", f"--study-name={study}", f"--parent={os.getpid()}"]
    command += ["--trust-remote-code"] if trust_remote_code else []
    children = []
    for n, its in enumerate(devices):
        label = f"worker {n}" if its == "auto" else f"worker {n} {its}"
        words = [*command, f"--device={its}"]
        children.append(Child(label, words, environment, database.held))
    run_children(children)
