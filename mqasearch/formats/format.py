"""What a checkpoint format must do: say what it can express, and write a whole folder."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from mqasearch.formats.converted import Converted

MAX_SHARD_BYTES = 4 * 10**9


@dataclass(frozen=True, slots=True)
class Options:
    """How to write a folder, for formats with a choice.

    Attributes:
        outtype: type of the weights, one of the format's ``outtypes``; None = its first.
        max_shard_bytes: size of the largest weights file, for formats that split weights into
            files.
    """

    outtype: str | None = None
    max_shard_bytes: int = MAX_SHARD_BYTES


DEFAULTS = Options()


@dataclass(frozen=True, slots=True)
class Serving:
    """How one program serves a folder.

    Attributes:
        engine: the program's name, as "vLLM".
        code: what to run; ``FOLDER`` stands for the folder.
        language: the language of ``code``: "bash" or "python".
    """

    engine: str
    code: str
    language: str = "bash"


class Format(ABC):
    """One layout of weights, config, tokenizer and code on the disk. It has no state.

    A format writes everything that an engine needs. ``convert_checkpoint`` adds the mask JSON, the
    model card and ``reproduce.json``, which are the same in every format. It also makes sure that
    the folder appears either complete or not at all.

    Example:
        >>> from mqasearch.formats import FORMATS
        >>> [name for name in FORMATS if "gpt2" in FORMATS[name].model_types]
        ['hf', 'mlx', 'expanded']

    Attributes:
        name: the format's name in ``--format`` of ``mqasearch convert``.
        summary: one line for the command line.
        library: the hub's name of the library that loads the folder; "" = there is none.
        saves_memory: whether the cache of a served checkpoint is smaller than the original's.
        refused_by: a sentence that says which known engines do not load the folder, and why.
        outtypes: choices of ``--outtype``; empty = the format writes the model's own dtype.
        model_types: transformers' ``config.model_type`` of the models that it can express.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    library: ClassVar[str] = ""
    saves_memory: ClassVar[bool] = True
    refused_by: ClassVar[str] = ""
    outtypes: ClassVar[tuple[str, ...]] = ()
    model_types: ClassVar[Iterable[str]]

    def fault(self, converted: Converted) -> str | None:
        """Which property of this model an engine would refuse or misread; None = none.

        The model is of one of ``model_types``. This is called before anything is written.
        """
        return None

    @abstractmethod
    def n_bytes(self, converted: Converted, options: Options) -> int:
        """Bytes of all tensors that ``write`` will write; no layer is merged."""

    @abstractmethod
    def write(self, converted: Converted, folder: Path, options: Options) -> Iterator[int]:
        """Write weights, config, tokenizer and code into ``folder``, which exists and is empty.

        Each layer is merged only when it is written.

        Yields:
            The bytes of each tensor once they are written; their sum is ``n_bytes``.
        """

    @abstractmethod
    def serving(self, model_type: str) -> tuple[Serving, ...]:
        """How to serve the folder, one entry per program that loads it without changes."""
