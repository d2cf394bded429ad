"""A model loaded in a stock engine, in a process and an environment of its own.

mqasearch and an engine seldom need the same versions of torch and transformers. So an engine may be
installed anywhere, and a driver script runs there that uses the engine and nothing of mqasearch.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from mqasearch.errors import UnknownNameError, UserError

FOLDER_VARIABLE = "MQASEARCH_ENGINES"
"""Environment variable that names a folder with one virtual environment per engine.

Each environment has the engine's name.
"""

_DRIVERS = Path(__file__).parent / "drivers"


@dataclass(frozen=True, slots=True)
class EngineKind:
    """What is known about an engine before it runs.

    Attributes:
        name: the engine's name, as "vllm".
        module: a module that Python can import if the engine is installed.
        driver: the driver script's name in ``drivers/``, or its absolute path.
        package: the package that pip installs.
        batches: whether the driver can time the decoding of several sequences at once.
    """

    name: str
    module: str
    driver: str
    package: str
    batches: bool = True


ENGINES: Mapping[str, EngineKind] = MappingProxyType(
    {
        kind.name: kind
        for kind in (
            # its server starts sequences one by one: some decode while others are in prefill
            EngineKind("llama.cpp", "xllamacpp", "drive_llama_cpp.py", "xllamacpp", batches=False),
            EngineKind("mlx", "mlx_lm", "drive_mlx.py", "mlx-lm[cpu]"),
            EngineKind("vllm", "vllm", "drive_vllm.py", "vllm"),
        )
    }
)
"""Name → engine."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How an engine loads a model.

    Attributes:
        model: path of a folder or file.
        dtype: dtype of computation and cache by transformers' name, as "float32" or "bfloat16".
        max_tokens: most tokens of a sequence, prompt and continuation together.
        batch_size: most sequences at a time.
        n_threads: number of CPU threads; None = the engine's choice.
        trust_remote_code: run Python code in the folder; for folders that ``convert`` just wrote.
    """

    model: str
    dtype: str = "float32"
    max_tokens: int = 2048
    batch_size: int = 1
    n_threads: int | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True, slots=True)
class Timing:
    """One run of a batch: seconds for the prompt, and seconds for each further token."""

    prefill: float
    decode: float


def engine_kind(name: str, also: Iterable[str] = ()) -> EngineKind:
    """The engine of that name.

    Args:
        name: the engine's name.
        also: further names that the caller accepts, for the message.

    Raises:
        UnknownNameError: there is no such engine.
    """
    if name not in ENGINES:
        raise UnknownNameError("engine", name, [*also, *ENGINES])
    return ENGINES[name]


def engine_python(kind: EngineKind, given: Path | None = None) -> Path:
    """The Python that has the engine.

    Args:
        kind: the engine.
        given: the user's choice; None = the Python in ``$MQASEARCH_ENGINES/NAME`` if there is one,
            and else the Python that runs this.

    Raises:
        UserError: this Python does not have the engine; the message says how to install it.
    """
    folder = os.environ.get(FOLDER_VARIABLE)
    own = Path(folder, kind.name, "bin", "python") if folder else None
    python = given or (own if own is not None and own.exists() else Path(sys.executable))
    code = f"import importlib.util as u, sys; sys.exit(u.find_spec({kind.module!r}) is None)"
    try:
        # the user of mqasearch names the interpreter, and the code is ours
        found = subprocess.run([python, "-c", code], check=False, stderr=subprocess.DEVNULL)  # noqa: S603
    except OSError as error:
        raise UserError(f"{python} cannot be run: {error.strerror}") from None
    if found.returncode:
        raise UserError(
            f"engine {kind.name!r} is not installed for {python}: install it there with "
            f"'{python} -m pip install {kind.package}', or name a Python that has it: "
            "--engine-python"
        )
    return python


class Engine:
    """A running engine with one model; a context manager that ends the process at its end.

    >>> with Engine("llama.cpp", Settings("model.gguf")) as engine:
    ...     engine.log_probs([[1, 2, 3]])
    [[-3.2, -1.1]]

    Attributes:
        kind: which engine it is.
        version: the engine's version, as it states it.
    """

    def __init__(self, name: str, settings: Settings, *, python: Path | None = None) -> None:
        """Start the process and load the model.

        Raises:
            UnknownNameError: no such engine.
            UserError: the engine is not installed, or cannot load the model.
        """
        self.kind = engine_kind(name)
        command = [engine_python(self.kind, python), _DRIVERS / self.kind.driver]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self._process = subprocess.Popen(  # noqa: S603
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=True,  # so that close() also ends processes that the engine starts
        )
        try:
            self.version = str(self._answer_to(asdict(settings)))
        except BaseException:
            self.close()
            raise

    def log_probs(self, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
        """For each prompt, the log-probability of every token but the first, given those before."""
        answer: list[list[float]] = self._ask("log_probs", tokens=[list(p) for p in prompts])
        return answer

    def generate(self, prompts: Sequence[Sequence[int]], n_tokens: int) -> list[list[int]]:
        """Greedy continuations of exactly ``n_tokens`` tokens, without the prompts."""
        answer: list[list[int]] = self._ask(
            "generate", tokens=[list(p) for p in prompts], n_tokens=n_tokens
        )
        return answer

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids by the engine's own tokenizer; only llama.cpp has one."""
        answer: list[list[int]] = self._ask("tokenize", texts=list(texts))
        return answer

    def cache_bytes_per_token(self) -> float:
        """Bytes of KV cache that one more token takes; the engine states them."""
        return float(self._ask("cache_bytes_per_token"))

    def time(self, context: int, batch_size: int, n_tokens: int) -> Timing:
        """Time a batch of ``context`` random tokens per sequence, and ``n_tokens`` greedy steps.

        The prompt gives a token too, so there must be room for ``context + n_tokens + 1`` tokens.
        """
        answer = self._ask("time", context=context, batch_size=batch_size, n_tokens=n_tokens)
        return Timing(**answer)

    def close(self) -> None:
        """End the engine and all processes that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, question: str, **arguments: Any) -> Any:
        return self._answer_to({"ask": question, **arguments})

    def _answer_to(self, request: Mapping[str, Any]) -> Any:
        requests, answers = self._process.stdin, self._process.stdout
        assert requests is not None
        assert answers is not None
        try:
            requests.write(json.dumps(request) + "\n")
            requests.flush()
            line = answers.readline()
        except BrokenPipeError:
            line = ""
        whole = line.endswith("\n")  # a driver that is killed may leave half a line
        said = json.loads(line) if whole else {"error": f"it ended: {self._last_words()}"}
        if "error" in said:
            raise UserError(f"engine {self.kind.name!r}: {said['error']}")
        return said["answer"]

    def _last_words(self) -> str:
        """The exit code, and the last line that the engine has printed."""
        code = self._process.wait()
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return ": ".join([f"exit code {code}", *lines[-1:]])
