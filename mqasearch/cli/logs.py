"""What goes to stderr: lines for people, or one JSON object per line for programs.

With JSON, stderr itself is replaced: progress bars see no terminal and log lines instead, and what
libraries, workers and tracebacks write there becomes JSON too. Only text that does not pass through
Python (that of a crashing interpreter, for example) stays as it is.
"""

import json
import logging
import math
import re
import sys
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, TextIO, cast

from mqasearch.cli.options import LogFormat

log = logging.getLogger("mqasearch")

TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
"""The attributes of every record; all others are ``extra``."""

_PASSWORD = re.compile(r"(:/{1,2}[^\s/:@'\"]*:)[^\s'\"]*@")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_LABELLED = re.compile(r"[\[(](?P<label>[^\])]+)[\])] (?P<rest>\{.*\})")
"""A worker's line, as a run or Ray passes it on."""


def without_passwords(text: str) -> str:
    """Hide passwords of URLs: the last defence, since code that knows a URL hides its password."""
    return _PASSWORD.sub(r"\1***@", text)


class TextFormatter(logging.Formatter):
    """A line for people."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as text."""
        return without_passwords(super().format(record))


class JsonFormatter(logging.Formatter):
    """One JSON object per record: time, level, logger, message, exception, and what is ``extra``.

    We do not use python-json-logger's: there an ``extra`` called ``level`` replaces the level, NaN
    is written as it is, which is not JSON, and the necessary overrides are as long as this class.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line of ASCII."""
        row: dict[str, Any] = {
            "time": _time(record.created),
            "level": record.levelname,
            "logger": record.name,
            "message": without_passwords(record.getMessage()),
        }
        if record.exc_info and record.exc_info[1] is not None:
            row["exception"] = without_passwords(self.formatException(record.exc_info))
        for name, value in vars(record).items():
            if name not in _OWN and not name.startswith("_"):  # Ray adds one to every record
                row.setdefault(name, _plain(value))
        return json.dumps(row)


def _time(seconds: float) -> str:
    moment = datetime.fromtimestamp(seconds, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _plain(value: object) -> object:
    """The value in a form that JSON can hold."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return without_passwords(str(value))


class JsonLines:
    """Stands in for stderr: each line that is not a JSON object becomes one.

    Attributes:
        stream: what it stands in for.
    """

    def __init__(self, stream: TextIO, formatter: JsonFormatter) -> None:
        self.stream = stream
        self._formatter = formatter
        self._begun = threading.local()

    def write(self, text: str) -> int:
        """Lines are passed on when they are whole, or flushed."""
        begun: str = getattr(self._begun, "text", "") + text
        *lines, self._begun.text = begun.split("\n")
        self._pass_on(lines)
        return len(text)

    def flush(self) -> None:
        """Pass on the begun line too."""
        begun, self._begun.text = getattr(self._begun, "text", ""), ""
        self._pass_on([begun])
        self.stream.flush()

    def isatty(self) -> bool:
        """No: nobody watches bars through a program."""
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def _pass_on(self, lines: list[str]) -> None:
        rows = [self._row(_COLOUR.sub("", line).strip()) for line in lines]
        if text := "".join(f"{row}\n" for row in rows if row):
            self.stream.write(text)  # in one go: several threads write

    def _row(self, line: str) -> str:
        if not line or _object(line) is not None:
            return line
        labelled = _LABELLED.fullmatch(line)
        if labelled is not None and (row := _object(labelled["rest"])) is not None:
            return json.dumps({**row, "worker": labelled["label"]})
        record = {"name": "stderr", "levelname": "INFO", "msg": line}
        return self._formatter.format(logging.makeLogRecord(record))


def _object(line: str) -> dict[str, Any] | None:
    if not line.startswith("{"):
        return None
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def start_logging(log_format: LogFormat, *, verbose: bool) -> None:
    """Log to stderr from now on.

    Args:
        log_format: text or JSON.
        verbose: whether libraries log messages of level INFO too.
    """
    _for_children[:] = ["--verbose"] * verbose
    formatter: logging.Formatter = TextFormatter(TEXT)
    stream = sys.stderr
    if log_format is LogFormat.JSON:
        _for_children.append(f"--log-format={log_format}")
        formatter = json_formatter = JsonFormatter()
        if isinstance(stream, JsonLines):
            stream = stream.stream
        sys.stderr = cast(TextIO, JsonLines(stream, json_formatter))
        sys.excepthook = _uncaught
        threading.excepthook = _uncaught_in_thread
        logging.captureWarnings(True)
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    handler.addFilter(_is_no_interruption)
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, handlers=[handler])
    log.setLevel(logging.INFO)


def _is_no_interruption(record: logging.LogRecord) -> bool:
    """False for a library's report that a signal came while it tidied up.

    A signal interrupts at any instruction. SQLAlchemy's pool logs every exception that comes while
    it takes a connection back, but lets an interruption pass on to the code that handles it.
    """
    return not (record.exc_info and isinstance(record.exc_info[1], KeyboardInterrupt))


_for_children: list[str] = []


def options_for_children() -> tuple[str, ...]:
    """Root options with which another command logs as this one does."""
    return tuple(_for_children)


def complain(error: BaseException) -> None:
    """Say why the command ends."""
    if isinstance(sys.stderr, JsonLines):
        log.error("%s", error)
    else:
        print(f"mqasearch: {without_passwords(str(error))}", file=sys.stderr)


def _uncaught(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    log.critical("unexpected %s", kind.__name__, exc_info=(kind, error, traceback))


def _uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None:
        _uncaught(args.exc_type, args.exc_value, args.exc_traceback)
