"""The command line in this process, as the console script would run it."""

import shlex
import signal
import sys

import pytest

from mqasearch import cli


def run_here(line: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of ``mqasearch LINE``; signals are handled as before afterwards."""
    monkeypatch.setattr(sys, "argv", ["mqasearch", *shlex.split(line)])
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with pytest.raises(SystemExit) as ended:
        cli.main()
    for number, handler in handlers.items():
        signal.signal(number, handler)
    assert isinstance(ended.value.code, int)
    return ended.value.code


class Command:
    """Runs the command line in this process; exit code, stdout and stderr."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, line: str) -> tuple[int, str, str]:
        code = run_here(line, self._monkeypatch)
        out, err = self._capsys.readouterr()
        return code, out, err
