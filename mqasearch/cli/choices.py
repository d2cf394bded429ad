"""What ``run`` is given: a study file or a model, and what a model's options mean."""

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mqasearch.errors import UserError

if TYPE_CHECKING:
    from mqasearch.creation import More

_FORMS = (
    "a study file (STUDY.yaml), or a model: {embedded}, a folder, a .gguf file or a hub id "
    "(OWNER/NAME or NAME)"
)


@dataclass(frozen=True, slots=True)
class Choices:
    """Options of ``run MODEL``, as they were typed; None or False: not given."""

    budget: str | None = None
    task: Sequence[str] | None = None
    tolerance: Sequence[str] | None = None
    documents: str | None = None
    confirmation: str | None = None
    dtype: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    study_name: str | None = None
    kv_heads: str | None = None
    latency: str | None = None

    def as_data(self) -> dict[str, Any]:
        """The options that were given, as keys of a study file.

        Raises:
            UserError: an option is not written as its help says.
        """
        model = {"dtype": self.dtype, "revision": self.revision}
        if self.trust_remote_code:
            model["trust_remote_code"] = True  # type: ignore[assignment]
        documents: dict[str, Any] = {}
        for key, option, text in (
            ("search", "--documents", self.documents),
            ("confirmation", "--confirmation", self.confirmation),
        ):
            if text is not None:
                documents[key] = _number_or_all(option, text)
        data = {
            "name": self.study_name,
            "model": {key: value for key, value in model.items() if value is not None},
            "kv_heads": None if self.kv_heads is None else _numbers(self.kv_heads),
            "budget": self._budgets(),
            "tasks": list(self.task or ()),
            "tolerance": [_tolerance(text) for text in self.tolerance or ()],
            "documents": documents,
        }
        return {key: value for key, value in data.items() if value}

    def _budgets(self) -> Any:
        """The budgets; those in milliseconds with the file of measured times."""
        if self.budget is None or self.budget == "auto":
            budgets: list[Any] = []
        else:
            budgets = [_budget(part.strip()) for part in self.budget.split(",")]
        timed = [row for row in budgets if isinstance(row, dict) and "decode_ms" in row]
        if self.latency is not None and not timed:
            raise UserError("--latency: give --budget in milliseconds too, as in 12ms")
        for row in timed if self.latency is not None else ():
            row["latency"] = self.latency
        return self.budget if not budgets else budgets if len(budgets) > 1 else budgets[0]


_IN_THE_FILE = {
    "budget": "budget: 5",
    "task": "tasks: [hellaswag]",
    "tolerance": "tolerance: {metric: acc_norm, points: 1.0}",
    "documents": "documents: {search: 64}",
    "confirmation": "documents: {confirmation: 1000}",
    "dtype": "model: {name: …, dtype: float32}",
    "revision": "model: {name: …, revision: main}",
    "trust_remote_code": "model: {name: …, trust_remote_code: true}",
    "study_name": "name: my-study",
    "kv_heads": "kv_heads: [1, 2, 4]",
    "latency": "budget: {decode_ms: 12, latency: latency.json}",
}


def refuse_for_file(chosen: Choices, study: str) -> None:
    """Refuse a model's options for a study file, since the file says all that they would.

    Raises:
        UserError: an option was given; the message says where to write it.
    """
    for name, written in _IN_THE_FILE.items():
        if getattr(chosen, name):
            option = f"--{name.replace('_', '-')}"
            raise UserError(
                f"{option} goes with a model, not with a study file; write it into {study}, as in "
                f"`{written}`"
            )


def more_trials(text: str) -> "More":
    """What ``--n-trials`` asks for.

    Raises:
        UserError: ``text`` is neither +N nor N.
    """
    from mqasearch.creation import More

    if re.fullmatch(r"\+?[1-9][0-9]{0,8}", text) is None:
        raise UserError(f"--n-trials {text}: give +20 for 20 more, or 60 for 60 in all")
    return More(int(text), adds=text.startswith("+"))


def is_model(text: str) -> bool:
    """Whether ``text`` means a model and not a study file, which need not exist.

    Raises:
        UserError: ``text`` can mean neither, or a hub id is probably a misspelt file.
    """
    path = Path(os.path.expanduser(text))
    if path.is_dir() or path.suffix == ".gguf":
        return True
    if path.exists() or path.suffix in (".yaml", ".yml"):
        return False

    from mqasearch.models import EMBEDDED, is_hub_id

    if text in EMBEDDED or text.partition(":")[0] == "fake":
        return True
    known = {name: name for name in EMBEDDED} | _beside(path, text)
    typed = get_close_matches(text, known, n=3, cutoff=0.75)
    near = list(dict.fromkeys(known[name] for name in typed))
    if is_hub_id(text) and not near:
        return True
    guess = f"did you mean {' or '.join(near)}? " if near else ""
    forms = _FORMS.format(embedded=", ".join(EMBEDDED))
    raise UserError(f"there is no study file or model {text!r}: {guess}give {forms}")


def _beside(path: Path, text: str) -> dict[str, str]:
    """Studies and models in the folder that ``text`` names: name as it may be typed → real name.

    A study file may be typed without its suffix.
    """
    folder = path.parent
    if not folder.is_dir():
        return {}
    head = text[: len(text) - len(path.name)]
    found: dict[str, str] = {}
    for each in sorted(folder.iterdir()):
        is_study = each.suffix in (".yaml", ".yml")
        if is_study:
            found[head + each.stem] = head + each.name
        if is_study or each.suffix == ".gguf" or (each / "config.json").is_file():
            found[head + each.name] = head + each.name
    return found


def _number_or_all(option: str, text: str) -> int | None:
    if text == "all":
        return None
    if not text.isascii() or not text.isdigit():
        raise UserError(f"{option} {text}: give a number of documents, or all")
    return int(text)


def _numbers(text: str) -> list[int]:
    numbers = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch("[0-9]{1,9}", part) for part in numbers):
        raise UserError(f"--kv-heads {text}: give numbers of KV heads, as in 1,2,4")
    return [*map(int, numbers)]


def _budget(text: str) -> Any:
    with suppress(ValueError):
        return int(text)
    if "/" in text:
        return {"kv_bytes_fraction": text}
    if text.endswith("ms"):
        with suppress(ValueError):
            return {"decode_ms": float(text.removesuffix("ms"))}
    try:
        return {"kv_bytes_fraction": float(text)}
    except ValueError:
        raise UserError(
            f"--budget {text}: give auto, a number of layers as in 5, a share of the KV cache as "
            "in 0.6 or 1/3, milliseconds per token as in 12ms, or several separated by commas"
        ) from None


def _tolerance(text: str) -> dict[str, Any]:
    what, _, points = text.rpartition(":")
    task, _, metric = what.rpartition(".")
    try:
        row: dict[str, Any] = {"metric": metric, "points": float(points)}
    except ValueError:
        row = {}
    if not row or not metric:
        raise UserError(
            f"--tolerance {text}: write METRIC:POINTS or TASK.METRIC:POINTS, as in acc_norm:1.0"
        )
    return {"task": task, **row} if task else row
