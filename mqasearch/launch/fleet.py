"""What is launched: N equal workers of one study, and the resources that they may use."""

import re
from dataclasses import dataclass

from sqlalchemy import URL

from mqasearch.database import hidden, parse
from mqasearch.errors import StorageError, UnknownNameError, UserError

ENGINES = ("ray", "slurm", "kubernetes")

_CLOCK = re.compile(r"(?:(?P<d>\d+)-)?(?P<h>\d+):(?P<m>[0-5]\d):(?P<s>[0-5]\d)", re.ASCII)
_UNITS = {"m": 60, "h": 3600, "d": 86400}
_LOOPBACK = re.compile(r"localhost|127\.[0-9.]+|::1|/.*")


@dataclass(frozen=True)
class Fleet:
    """N equal workers.

    Attributes:
        study: what they work on, as ``mqasearch worker --study-name`` takes it.
        n_workers: how many.
        gpus: GPUs of each worker; with 0 it runs on the CPU.
        cpus: cores of each worker.
        memory: GiB of each worker; None leaves it to the engine.
        seconds: the longest that they may run; None leaves it to the engine.
        trust_remote_code: they may run code that comes with the model.
    """

    study: str
    n_workers: int
    gpus: int = 0
    cpus: int = 1
    memory: int | None = None
    seconds: int | None = None
    trust_remote_code: bool = False

    @property
    def device(self) -> str:
        """The worker's device: an engine shows it only its own, so this is the first one."""
        return "cuda:0" if self.gpus else "cpu"

    @property
    def arguments(self) -> tuple[str, ...]:
        """Arguments of the command line; the database's URL comes from the environment."""
        trust = ("--trust-remote-code",) if self.trust_remote_code else ()
        return ("worker", f"--study-name={self.study}", f"--device={self.device}", *trust)


def check_engine(name: str) -> None:
    """Raises UnknownNameError unless it is one of ``ENGINES``."""
    if name not in ENGINES:
        raise UnknownNameError("engine", name, ENGINES, "one machine needs none: mqasearch run")


def check_shared(url: str, engine: str) -> URL:
    """Parse the URL, and check that many machines can reach the database.

    Raises:
        StorageError: the URL does not parse, or is SQLite's.
    """
    parsed = parse(url)
    if parsed.get_backend_name() == "sqlite":
        raise StorageError(
            f"{hidden(parsed)} is a file, and workers on {engine} run on many machines; use "
            "PostgreSQL: --storage postgresql://USER@HOST/NAME"
        )
    return parsed


def only_here(url: URL) -> bool:
    """Whether the URL means another database on every machine: it has loopback or a socket."""
    host = url.host or url.query.get("host") or "localhost"
    return isinstance(host, str) and _LOOPBACK.fullmatch(host) is not None


def seconds_of(time: str) -> int:
    """Seconds of ``90m``, ``4h``, ``2d``, or Slurm's ``[DAYS-]HOURS:MINUTES:SECONDS``.

    Raises:
        UserError: the text has another form, or the time is 0.
    """
    if clock := _CLOCK.fullmatch(time):
        days, hours, minutes, seconds = (int(clock[part] or 0) for part in "dhms")
        total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    elif short := re.fullmatch(r"(\d+)([mhd])", time, re.ASCII):
        total = int(short[1]) * _UNITS[short[2]]
    else:
        total = 0
    if not total:
        raise UserError(f"--time {time!r}: write 90m, 4h, 2d or [DAYS-]HOURS:MINUTES:SECONDS")
    return total
