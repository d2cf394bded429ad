"""Options that several commands share, spelled once, with Optuna's names."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

DEFAULT_STORAGE = "sqlite:///mqasearch.db"


class Format(StrEnum):
    """How a listing is printed."""

    TABLE = "table"
    JSON = "json"


class LogFormat(StrEnum):
    """How the log on stderr is written."""

    TEXT = "text"
    JSON = "json"


Storage = Annotated[
    str,
    typer.Option(
        "--storage",
        envvar="OPTUNA_STORAGE",
        help="Database URL: sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME.",
        show_envvar=True,
    ),
]
GivenStorage = Annotated[
    str | None,
    typer.Option(
        "--storage",
        envvar="OPTUNA_STORAGE",
        help=f"Database URL. Default: {DEFAULT_STORAGE} for one worker, an embedded PostgreSQL in "
        "mqasearch.pg for several.",
        show_envvar=True,
    ),
]
StudyName = Annotated[
    str,
    typer.Option("--study-name", help="A comparison, or one of its selectors as NAME.SELECTOR."),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda:N or mps.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")
]
ChosenLogFormat = Annotated[
    LogFormat,
    typer.Option("--log-format", help="Of stderr: text, or json, one object a line."),
]
OutputFormat = Annotated[Format, typer.Option("-f", "--format", help="table or json.")]
StudyFile = Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="The study file.")]
