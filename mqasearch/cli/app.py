"""The root command: what is common to all, and how it ends."""

import logging
import os
import signal
import sys
from types import FrameType
from typing import NoReturn

import typer

from mqasearch import __version__
from mqasearch.cli import convert, latency, launch, listing, serving, study
from mqasearch.errors import MqasearchError, UserError

app = typer.Typer(
    name="mqasearch",
    help="Find which attention layers of a pretrained transformer can become multi-query "
    "attention, under a budget, without retraining.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
study.register(app)
serving.register(app)
convert.register(app)
launch.register(app)
latency.register(app)
listing.register(app)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
    verbose: bool = typer.Option(False, "-v", "--verbose", help="Log more, to stderr."),
) -> None:
    """Root options."""
    if version:
        print(f"mqasearch {__version__}")
        raise typer.Exit
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    logging.getLogger("mqasearch").setLevel(logging.INFO)
    if not verbose:
        _quiet_libraries()


def _quiet_libraries() -> None:
    """What libraries say of themselves, said before they are imported: progress is shown once."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


class Stopped(KeyboardInterrupt):
    """A signal: the trial in hand is given back, then the process ends with 128 + its number."""


class Signals:
    """SIGINT and SIGTERM interrupt once; a second one ends the process at once."""

    received: int | None = None

    def install(self) -> None:
        """Take over both signals."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)

    def _stop(self, number: int, _: FrameType | None) -> NoReturn:
        self.received = number
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)
        raise Stopped


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 failed, 2 bad input, 128 + n on signal n."""
    signals = Signals()
    signals.install()
    code: int | str | None
    try:
        app()
    except SystemExit as ended:
        code = ended.code
    except UserError as error:
        print(f"mqasearch: {error}", file=sys.stderr)
        code = 2
    except MqasearchError as error:
        print(f"mqasearch: {error}", file=sys.stderr)
        code = 1
    sys.exit(128 + signals.received if signals.received else code or 0)
