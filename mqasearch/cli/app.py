"""The root command: what all commands have in common, and how they end."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from mqasearch import __version__
from mqasearch.cli import (
    convert_command,
    latency_command,
    launch_commands,
    listing,
    reproduce_command,
    run_command,
    serve_commands,
    study_commands,
)
from mqasearch.cli.logs import complain, start_logging, without_passwords
from mqasearch.cli.options import ChosenLogFormat, LogFormat
from mqasearch.cli.signals import Signals, Stopped
from mqasearch.errors import MqasearchError, UserError


class Commands(TyperGroup):
    """Hides the passwords of URLs in its messages about a wrong command line."""

    def make_context(self, *args: Any, **extra: Any) -> Any:
        """Read the root options."""
        with _passwords_hidden():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: Any) -> Any:
        """Read the command and its options, and run it."""
        with _passwords_hidden():
            return super().invoke(ctx)


@contextmanager
def _passwords_hidden() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        message = getattr(error, "message", None)
        if isinstance(message, str):  # a usage error, which says what was given
            error.message = without_passwords(message)  # type: ignore[attr-defined]
        raise


app = typer.Typer(
    name="mqasearch",
    cls=Commands,
    help="Find which attention layers of a pretrained transformer can become multi-query "
    "attention, under a budget, without retraining.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
run_command.register(app)
study_commands.register(app)
serve_commands.register(app)
convert_command.register(app)
reproduce_command.register(app)
launch_commands.register(app)
latency_command.register(app)
listing.register(app)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
    verbose: bool = typer.Option(False, "-v", "--verbose", help="Log more, to stderr."),
    log_format: ChosenLogFormat = LogFormat.TEXT,
) -> None:
    """Root options."""
    if version:
        print(f"mqasearch {__version__}")
        raise typer.Exit
    start_logging(log_format, verbose=verbose)
    if not verbose:
        _quiet_libraries()


def _quiet_libraries() -> None:
    """Silence libraries, before they are imported, so that progress is shown only once."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def _usage(error: Any) -> str:
    """What is wrong with the command line, on one line."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "mqasearch"
    message = " ".join(error.format_message().split()).removesuffix(".")
    return f"{message}; see {command} --help" if message else ""


def main() -> None:
    """Run the command line.

    Exit codes: 0 done, 1 failed, 2 bad input, 75 may succeed later, 128 + n on signal n.
    """
    # By default torch's threads wait for each other busily, which makes them several times slower
    # than passive waiting if another process runs. Torch reads this when it is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    signals = Signals()
    signals.install()
    code: int | str | None
    try:
        code = app(standalone_mode=False)
    except SystemExit as ended:
        code = ended.code
    except typer.TyperException as error:
        if said := _usage(error):  # else only the program's name was given, and help is printed
            complain(UserError(said))
        code = 2
    except (typer.Abort, Stopped):
        code = 1
    except MqasearchError as error:
        complain(error)
        code = error.exit_code
    except Exception:
        if signals.received is None:
            raise
        logging.getLogger("mqasearch").debug("while stopping", exc_info=True)
        code = 1
    signals.end()
    sys.exit(128 + signals.received if signals.received else code or 0)
