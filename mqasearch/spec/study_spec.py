"""The study file: what to search, on what, with which selectors.

A bare string is accepted for a model, a merge, a task and a selector, and a bare number for the
budget. Everything else is strict. If a key or a name is unknown, the error gives the nearest known
one. All faults are reported at once.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    ValidationError,
    field_serializer,
    field_validator,
    model_validator,
)

from mqasearch.errors import SpecError, unknown_name
from mqasearch.mask import ModelShape
from mqasearch.score import DEFAULT_METRIC, TaskSpec
from mqasearch.spec.budgets import (
    BudgetEntry,
    BudgetGiven,
    DecodeTimesEntry,
    OneBudget,
    auto_budgets,
    budgets_door,
)
from mqasearch.spec.faults import faults_of
from mqasearch.tolerance import ToleranceEntry, as_list

Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""NumPy's and Optuna's generators take no other seeds."""


def _named(kind: Any) -> BeforeValidator:
    """Accept a bare string for a mapping whose only key is ``name``."""
    return BeforeValidator(
        lambda value: {"name": value} if isinstance(value, str) else value,
        json_schema_input_type=str | kind,
    )


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelEntry(_Strict):
    """The model: hub id, local folder, GGUF file, or ``smollm2-135m``."""

    name: str
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    trust_remote_code: bool = False


class _NamedParameters(BaseModel):
    """A name; all other keys are its parameters."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @property
    def parameters(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class MergeEntry(_NamedParameters):
    """How the KV heads of a converted layer are merged."""


DEFAULT_MERGE = MergeEntry.model_validate({"name": "aligned", "tune": True})
"""The merge that loses least (benchmarks/merges.md)."""


class SelectorEntry(_NamedParameters):
    """One competitor: a selector, the number of its trials, its parameters."""

    n_trials: int | None = Field(default=None, ge=1)


class TaskEntry(_Strict):
    """One benchmark; ``limit`` overrides ``documents.search``."""

    name: str
    metric: str = DEFAULT_METRIC
    num_fewshot: int = Field(default=0, ge=0)
    limit: int | None = Field(default=None, ge=1)
    weight: float = Field(default=1.0, gt=0, le=1e6)


class DocumentsEntry(_Strict):
    """How many documents of each split are used; None = all of them.

    ``search: full`` scores every document, unsplit, so that none is left to confirm on. If the
    merge reads the calibration split, that split is left out, because the merge was fitted to its
    right answers.

    ``confirmation: 0`` confirms nothing.
    """

    search: Annotated[int, Field(ge=2)] | Literal["full"] | None = 32
    confirmation: int | None = Field(default=400, ge=0)
    calibration_tokens: int = Field(default=32_768, ge=1)
    seed: Seed = 0

    @field_validator("confirmation")
    @classmethod
    def _more_than_one(cls, confirmation: int | None) -> int | None:
        if confirmation == 1:
            raise ValueError("one document has no standard error; give 2 or more, or 0 for none")
        return confirmation

    @property
    def hold_out(self) -> bool:
        """Whether any documents are left to confirm masks on."""
        return self.search != "full" and self.confirmation != 0


class HealEntry(_Strict):
    """The best mask of each selector is healed, and confirmed once more.

    ``steps`` is the largest number of steps of distillation from the original. ``tokens`` is the
    number of different tokens of calibration text; None = as many as the steps see.
    """

    steps: Annotated[int, Field(ge=1, lt=10**7)] | Literal["auto"] = "auto"
    tokens: Annotated[int, Field(ge=1)] | None = None


def _heal_door(value: object) -> object:
    if isinstance(value, bool):  # YAML's yes and no
        return {} if value else None
    return {"steps": value} if isinstance(value, str | int) else value


_PRUNERS = {"paired_mean": "paired_mean", "wilcoxon": "paired_mean"}
"""A pruner's name in a study file → the pruner that it means."""


class PrunerEntry(_Strict):
    """Gives up a mask whose mean is clearly worse than that of the best mask of its size.

    The parameters are named as those of Optuna's ``WilcoxonPruner``; a step is a document.
    ``p_threshold`` is the level of a whole race. The name ``wilcoxon`` is read as ``paired_mean``,
    because study files had it before the test became one of the mean.
    """

    name: str
    p_threshold: float = Field(default=0.01, gt=0, lt=0.5)
    n_startup_steps: int = Field(default=50, ge=2)
    interval_steps: int = Field(default=25, ge=1)

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in _PRUNERS:
            raise ValueError(unknown_name("pruner", name, _PRUNERS))
        return _PRUNERS[name]


# What a study file may give in place of what a spec holds: for its JSON schema.
BudgetsGiven = BudgetGiven | list[BudgetGiven] | Literal["auto"]
TolerancesGiven = ToleranceEntry | list[ToleranceEntry] | None
HealGiven = HealEntry | bool | int | Literal["auto"] | None

KVNumber = Annotated[int, Field(ge=1)]
MAX_LEVELS = 9
"""The most numbers of KV heads among which a layer may choose: a mask has one digit per layer."""

KVNumbersGiven = KVNumber | Annotated[list[KVNumber], Field(min_length=1, max_length=MAX_LEVELS)]

NamedMask = list[int] | dict[int, list[int]]
"""The converted layers; if there are several ``kv_heads``, number of KV heads → layers."""

OneSelector = Annotated[SelectorEntry, _named(SelectorEntry)]
OneTask = Annotated[TaskEntry, _named(TaskEntry)]


class StudySpec(_Strict):
    """A study file."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    model: Annotated[ModelEntry, _named(ModelEntry)]
    merge: Annotated[MergeEntry, _named(MergeEntry)] = DEFAULT_MERGE
    kv_heads: Annotated[list[KVNumber], BeforeValidator(as_list, KVNumbersGiven)] = Field(
        default=[1], min_length=1, max_length=MAX_LEVELS
    )
    budget: Annotated[list[OneBudget], BeforeValidator(budgets_door, BudgetsGiven)]
    tasks: list[OneTask] = Field(min_length=1)
    documents: DocumentsEntry = DocumentsEntry()
    selectors: list[OneSelector] = Field(default=[])
    enqueue: dict[str, NamedMask] = Field(default={})
    tolerance: Annotated[list[ToleranceEntry], BeforeValidator(as_list, TolerancesGiven)] = []
    pruner: Annotated[PrunerEntry, _named(PrunerEntry)] | None = None
    heal: Annotated[HealEntry | None, BeforeValidator(_heal_door, HealGiven)] = None
    n_trials: int = Field(default=30, ge=1)
    seed: Seed = 0

    @model_validator(mode="before")
    @classmethod
    def _older_name(cls, data: Any) -> Any:
        """Read ``target_kv_heads: 2``, which study files had before, as ``kv_heads: [2]``."""
        if not isinstance(data, Mapping) or "target_kv_heads" not in data or "kv_heads" in data:
            return data
        others = {key: value for key, value in data.items() if key != "target_kv_heads"}
        return {**others, "kv_heads": data["target_kv_heads"]}

    @field_validator("kv_heads")
    @classmethod
    def _ascending(cls, numbers: list[int]) -> list[int]:
        if twice := sorted({number for number in numbers if numbers.count(number) > 1}):
            raise ValueError(f"{', '.join(map(str, twice))} given twice")
        return sorted(numbers)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.kv_heads) > 1 and any(entry.n_layers is not None for entry in self.budget):
            raise ValueError(
                "budget: with several kv_heads a number of layers says little; give "
                "{kv_bytes_fraction: 0.5}, the share of the KV cache that is left, or decode_ms"
            )
        if "original" in self.enqueue:
            raise ValueError("enqueue: the original is scored under that name; choose another")
        if not self.selectors and not self.enqueue:
            raise ValueError(
                "selectors: name at least one selector, or masks to enqueue; without the key the "
                "recommended ones are taken"
            )
        for what, names in (
            ("selectors", [selector.name for selector in self.selectors]),
            ("tasks", [task.name for task in self.tasks]),
            ("budget", [budget.label for budget in self.budget]),
        ):
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"{what}: {', '.join(twice)} given twice")
        if self.heal is not None and not self.documents.hold_out:
            raise ValueError("heal: nothing is held out to confirm healed masks on")
        if self.heal is not None and not self.selectors:
            raise ValueError("heal: masks enqueued by name are not healed; name a selector")
        if self.pruner is not None and len(self.tasks) > 1:
            raise ValueError("pruner: masks are compared on one task; name one, or leave it out")
        return self

    @model_validator(mode="after")
    def _tolerable(self) -> Self:
        if self.tolerance and not self.documents.hold_out:
            key = "search: full" if self.documents.search == "full" else "confirmation: 0"
            raise ValueError(f"tolerance: with documents.{key} nothing is held out to show it on")
        if self.tolerance and not self.selectors:
            raise ValueError("tolerance: masks enqueued by name are not confirmed; name a selector")
        return self

    @field_serializer("budget", mode="wrap")
    def _auto(self, budget: list[BudgetEntry], handler: SerializerFunctionWrapHandler) -> Any:
        return handler(budget) if budget else "auto"

    @property
    def metrics(self) -> dict[str, str]:
        """Task → the metric that the search optimises on it."""
        return {task.name: task.metric for task in self.tasks}

    @property
    def task_specs(self) -> tuple[TaskSpec, ...]:
        """The tasks; ``documents.search`` is the limit of a task that has none of its own."""
        search = self.documents.search
        default = None if search == "full" else search
        return tuple(
            TaskSpec(task.name, task.metric, task.num_fewshot, task.limit or default, task.weight)
            for task in self.tasks
        )

    def with_sizes(self, shape: ModelShape) -> "StudySpec":
        """The spec with the sizes of ``budget: auto`` for this shape; other budgets stay."""
        if self.budget:
            return self
        return self.model_copy(update={"budget": auto_budgets(shape, self.kv_heads)})

    def comparisons(self) -> dict[str, "StudySpec"]:
        """One comparison per budget: its name → the spec with that budget alone.

        The spec must come from ``with_sizes``: before that, ``budget: auto`` has no budgets.
        """
        assert self.budget, "budget: auto takes its sizes from the model"
        if len(self.budget) == 1:
            return {self.name: self}
        return {
            f"{self.name}-{budget.label}": self.model_copy(
                update={"name": f"{self.name}-{budget.label}", "budget": [budget]}
            )
            for budget in self.budget
        }


def parse_spec(data: object, where: str) -> StudySpec:
    """Validate the content of a study file, but not the names in it.

    ``mqasearch.creation.load_study`` also checks that the model, tasks, metrics, selectors and
    merge of these names exist.

    Args:
        data: the file's content, as read from YAML or JSON.
        where: what error messages call the file.

    Raises:
        SpecError: the file has faults; the error has one line for each.
    """
    if not isinstance(data, Mapping):
        raise SpecError(where, ["expected keys such as name, model, budget, tasks and selectors"])
    try:
        return StudySpec.model_validate(data)
    except ValidationError as error:
        raise SpecError(where, faults_of(error, _unknown_key)) from None


Entry = ModelEntry | MergeEntry | SelectorEntry | TaskEntry

_ONE: Mapping[str, TypeAdapter[Any]] = {
    "model": TypeAdapter(Annotated[ModelEntry, _named(ModelEntry)]),
    "merge": TypeAdapter(Annotated[MergeEntry, _named(MergeEntry)]),
}
_SEVERAL: Mapping[str, TypeAdapter[Any]] = {
    "tasks": TypeAdapter(OneTask),
    "selectors": TypeAdapter(OneSelector),
}


def named_entries(data: Mapping[str, Any]) -> Iterator[tuple[str, Entry]]:
    """The parts of a study file that name something, each with its path in the file.

    Names can so be checked in a file with other faults: of an entry that cannot be read, the name
    alone is taken, if it has one.

    Example:
        >>> data = {"tasks": ["piqa", {"name": "arc", "limit": 0}, 7]}
        >>> [(path, entry.name) for path, entry in named_entries(data)]
        [('tasks.0', 'piqa'), ('tasks.1', 'arc')]
    """
    for key, part in _ONE.items():
        path = "model.name" if key == "model" else key
        yield from ((path, entry) for entry in _read(part, data.get(key)))
    for key, part in _SEVERAL.items():
        rows = data.get(key)
        for number, row in enumerate(rows if isinstance(rows, list) else ()):
            yield from ((f"{key}.{number}", entry) for entry in _read(part, row))


def _read(part: TypeAdapter[Any], given: object) -> Iterator[Entry]:
    """The entry, or one with its name alone, or none."""
    name = given.get("name") if isinstance(given, Mapping) else None
    for attempt in (given, name):
        with suppress(ValidationError):
            yield part.validate_python(attempt)
            return


_ENTRIES: Mapping[str, type[BaseModel]] = {
    "model": ModelEntry,
    "tasks": TaskEntry,
    "documents": DocumentsEntry,
    "budget": BudgetEntry,
    "pruner": PrunerEntry,
    "heal": HealEntry,
    "tolerance": ToleranceEntry,
}


def _unknown_key(loc: tuple[int | str, ...]) -> str:
    entry = _ENTRIES.get(str(loc[0]), StudySpec) if len(loc) > 1 else StudySpec
    if "latency" in loc[1:-1]:
        entry = DecodeTimesEntry
    return unknown_name("key", str(loc[-1]), entry.model_fields)
