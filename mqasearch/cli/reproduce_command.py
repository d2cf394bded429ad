"""``reproduce``: a converted checkpoint built again, and compared bit for bit."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mqasearch.cli.bytes_bar import bytes_bar
from mqasearch.cli.options import TrustRemoteCode

if TYPE_CHECKING:
    from mqasearch.checkpoint import Reproduction


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(reproduce)


def reproduce(
    path: Annotated[
        Path, typer.Argument(metavar="FOLDER_OR_FILE", help="What convert wrote, or a file of it.")
    ],
    model: Annotated[
        str | None, typer.Option(help="Where the original model is now, if it moved.")
    ] = None,
    output_dir: Annotated[
        Path | None, typer.Option(help="Keep what is built, in a new folder.")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option("--device", help="auto, cpu, cuda:N or mps; as the first time otherwise."),
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Build a converted checkpoint again from the original, and compare it bit for bit."""
    from mqasearch.checkpoint import reproduce as build_again
    from mqasearch.cli.heal_progress import HealingBar

    with HealingBar() as healing, bytes_bar("building it again") as bar:
        found = build_again(
            path,
            model=model,
            output_dir=output_dir,
            device=device,
            trust_remote_code=trust_remote_code,
            progress=healing.before(bar),
            watch_heal=healing.show,
        )
    print("\n".join(_lines(found, is_built=not found.changed or output_dir is not None)))
    if not found.identical:
        raise typer.Exit(1)


def _lines(found: "Reproduction", *, is_built: bool) -> list[str]:
    if found.identical:
        n_files = len(found.files)
        return [f"identical: {n_files} {'file' if n_files == 1 else 'files'}"]
    lines = [f"changed since it was written: {file} {how}" for file, how in found.changed.items()]
    lines += [f"built differently: {name}" for name in found.differing]
    if found.differing:
        lines += [f"differing input: {line}" for line in found.inputs]
    if found.differing and not found.inputs:
        lines.append(
            "no recorded input differs: reproduce.json was changed, or this machine computes "
            "otherwise than the one that it names"
        )
    elif is_built and not found.differing:
        lines.append("built again as it was written: the new folder has the right bytes")
    return lines
