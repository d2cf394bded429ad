"""Bytes written, as a bar on a terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def bytes_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A function of (bytes written, bytes in all) that shows them on stderr, if that is a terminal.

    Nothing is shown before the first call, so that another bar may be there until then.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        DownloadColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    bar = Progress(*columns, console=console, disable=not sys.stderr.isatty())
    task = bar.add_task(what, total=None)

    def show(done: int, total: int) -> None:
        bar.start()  # further calls do nothing
        bar.update(task, completed=done, total=total)

    try:
        yield show
    finally:
        bar.stop()
