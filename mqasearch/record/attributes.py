"""Every Optuna attribute of a study that mqasearch writes, each with its getter and setter.

Each attribute is written in a transaction of its own. So facts that belong together are one
attribute.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

import optuna
from optuna.storages import BaseStorage

from mqasearch import __version__
from mqasearch.errors import ModelError
from mqasearch.mask import KVHeads, LayerMask, ModelShape
from mqasearch.record.agreement import differences, remedies
from mqasearch.record.attributes_table import record_once
from mqasearch.record.trial_facts import TrialFacts
from mqasearch.search_space import SearchSpace, heads_space
from mqasearch.selectors import SELECTORS
from mqasearch.spec import StudySpec, parse_spec
from mqasearch.tolerance import ToleranceEntry

STUDY_KEY = "mqasearch:study"
CONFIRMATION_KEY = "mqasearch:confirmation"
UNCONFIRMED_KEY = "mqasearch:unconfirmed"
HEALED = "its healed mask"
"""Names what has no held-out result, if the healed mask has none but the mask itself has one."""

NO_MASK = "no mask"
"""Names what is missing, if no mask at the budget has a score."""

TOLERANCE_KEY = "mqasearch:tolerance"
MODEL_KEY = "mqasearch:model"
QUEUED_KEY = "mqasearch:queued"
"""On a trial that somebody enqueued with Optuna: the mask of the task that replaces it."""

Direction = Literal["minimize", "maximize"]
ENQUEUED = "enqueued"
"""The selector's name in a study that holds only masks enqueued by name."""

_OLDER_LEAST, _OLDER_NUMBER = "n_converted", "target_kv_heads"
"""Names of ``least`` and of the only number of ``kv_heads`` in older studies."""

_OURS = "mqasearch"
"""This package's name among ``versions``."""


def _known(kind: Any, row: dict[str, Any]) -> dict[str, Any]:
    """The row's fields that ``kind`` has; a newer mqasearch may have written more."""
    return {each.name: row[each.name] for each in fields(kind) if each.name in row}


@dataclass(frozen=True, slots=True)
class StudyFacts:
    """What a worker needs to know of an Optuna study; written by ``create``.

    Later, only the number of trials (:func:`mqasearch.creation.extend`) and the number of held-out
    documents (:mod:`mqasearch.study.generations`) may grow.

    Attributes:
        study: name in the study file.
        comparison: name that the selectors of one budget share.
        selector: this study's selector.
        least: what a mask at the budget saves at least, in the unit of ``space``. With one number
            of ``kv_heads``, this is the number of layers that it converts.
        n_layers: number of the model's layers.
        shape: the model's shape, as plain data. With ``dtype: auto`` its bytes are those of the
            machine that created the study. Workers may compute in another dtype; then the bytes
            are those of the trial, see ``original_kv_bytes``.
        n_trials: the most trials; None if the selector's plan ends by itself.
        direction: ``minimize`` or ``maximize``, according to lm-eval when the study was made.
        spec: the study file, as plain data.
        versions: versions of the packages that scores depend on.
        n_more: number of trials that were added to those of ``spec``; ``n_trials`` includes them.
        extension: an id of the call that added the last of them; empty if none were added.
        savings: what a layer saves at each level, if the budget is a decoding time; else empty,
            because it follows from the numbers of KV heads.
    """

    study: str
    comparison: str
    selector: str
    least: int
    n_layers: int
    shape: dict[str, int]
    n_trials: int | None
    direction: Direction
    spec: dict[str, Any]
    versions: dict[str, str]
    n_more: int = 0
    extension: str = ""
    savings: list[int] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The name of the Optuna study."""
        return f"{self.comparison}.{self.selector}"

    @property
    def parameters(self) -> dict[str, Any]:
        """The selector's parameters; its number of masks includes those that were added."""
        selectors = self.study_spec.selectors
        own = next((s.parameters for s in selectors if s.name == self.selector), {})
        counted = _counted(self.selector)
        if counted is None:
            return own
        _, default = SELECTORS.parameters(self.selector)[counted]
        return own | {counted: own.get(counted, default) + self.n_more}

    @property
    def allotted(self) -> int | None:
        """Number of trials after which the study ends, or of masks if the selector counts these.

        None if the selector's plan ends by itself.
        """
        counted = _counted(self.selector)
        if self.n_trials is not None or counted is None:
            return self.n_trials
        number: int = self.parameters[counted]
        return number

    def extended(self, n_more: int, call: str = "") -> "StudyFacts":
        """The facts with ``n_more`` more trials, which ``call`` added."""
        n_trials = None if self.n_trials is None else self.n_trials + n_more
        return replace(self, n_trials=n_trials, n_more=self.n_more + n_more, extension=call)

    @property
    def numbers(self) -> list[int]:
        """The numbers of KV heads that a converted layer may have."""
        numbers: list[int] = self.spec.get("kv_heads") or [self.spec.get(_OLDER_NUMBER, 1)]
        return numbers

    @property
    def space(self) -> SearchSpace:
        """The masks that the study may hold, and its budget."""
        if len(self.numbers) == 1:
            return SearchSpace(self.n_layers, self.least)
        shape = ModelShape(**self.shape)
        if not self.savings:
            return heads_space(shape, self.numbers, least_heads=1).with_least(self.least)
        choices = (shape.n_kv_heads, *sorted(self.numbers, reverse=True))
        return SearchSpace(self.n_layers, self.least, tuple(self.savings), choices)

    @property
    def budget_words(self) -> str:
        """The budget as people say it: layers, a share of the KV cache, or a decoding time."""
        if self.selector == ENQUEUED and len(self.numbers) > 1:
            return "masks by name"
        if len(self.numbers) == 1 and (self.selector == ENQUEUED or not self.savings):
            return f"{self.least} of {self.n_layers}"
        return str(self.study_spec.budget[0].budget)

    def kv_heads(self, mask: str) -> KVHeads:
        """KV heads per layer of a mask of the study."""
        return LayerMask.parse(mask).kv_heads(ModelShape(**self.shape), self.numbers)

    def original_kv_bytes(self, trial: TrialFacts) -> int:
        """Bytes of KV cache per token of the original model, in the dtype of the trial."""
        shape = ModelShape(**self.shape)
        kv_heads = self.kv_heads(trial.mask)
        original, converted = map(shape.kv_bytes_per_token, (shape.original, kv_heads))
        return trial.kv_bytes_per_token * original // converted

    @property
    def maximize(self) -> bool:
        """Whether a larger objective is better."""
        return self.direction == "maximize"

    @property
    def study_spec(self) -> StudySpec:
        """The spec, validated again, because anybody may have written the stored one."""
        where = f"the spec stored in study {self.name}"
        author = self.versions.get(_OURS, __version__)
        if author != __version__:  # a key that is unknown here may be known there
            where += f" by mqasearch {author} (this is {__version__})"
        return parse_spec(self.spec, where)


def _counted(selector: str) -> str | None:
    return SELECTORS[selector].counted if selector in SELECTORS else None


def set_study_facts(study: optuna.Study, facts: StudyFacts) -> None:
    """Write a study's facts."""
    study.set_user_attr(STUDY_KEY, asdict(facts))


def study_facts(user_attrs: dict[str, Any]) -> StudyFacts | None:
    """A study's facts; None for a study that mqasearch did not create."""
    row = user_attrs.get(STUDY_KEY)
    return facts_of(row) if isinstance(row, dict) else None


def facts_of(row: dict[str, Any]) -> StudyFacts:
    """A study's facts from plain data."""
    if "least" not in row and _OLDER_LEAST in row:
        row = {**row, "least": row[_OLDER_LEAST]}
    return StudyFacts(**_known(StudyFacts, row))


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What must be equal for all workers of a study; written by the first one.

    ``tasks``, ``tokenizer`` and ``code`` are empty if an older mqasearch, which did not have them,
    wrote the facts.

    Attributes:
        fingerprint: fingerprint of the original weights.
        dtype: the dtype that scores are computed in.
        merge: the merge's name and parameters in canonical form.
        calibration: digest of the calibration statistics; empty if the merge needs none.
        versions: versions of the packages that scores depend on.
        tasks: lm-eval's version of each task.
        tokenizer: digest of what the tokenizer does; empty if there is no tokenizer.
        code: digest of the code that computes scores.
    """

    fingerprint: str
    dtype: str
    merge: str
    calibration: str
    versions: dict[str, str]
    tasks: dict[str, str] = field(default_factory=dict)
    tokenizer: str = ""
    code: str = ""


def model_facts(user_attrs: dict[str, Any]) -> ModelFacts | None:
    """What the study's workers agreed on; None before the first worker."""
    row = user_attrs.get(MODEL_KEY)
    return ModelFacts(**_known(ModelFacts, row)) if isinstance(row, dict) else None


def agree_on_model(storage: BaseStorage, study: optuna.Study, mine: ModelFacts) -> None:
    """Record what this worker scores with, or check it against what the first worker recorded.

    The first worker must have the version of mqasearch that created the study. If two workers come
    first at once, one records its facts and the other is checked.

    Raises:
        ModelError: this worker's scores would not be comparable; the message says what differs.
    """
    attributes = study.user_attrs
    ours = asdict(mine)
    theirs: dict[str, Any] = {"versions": {}}
    if (facts := study_facts(attributes)) is not None and _OURS in facts.versions:
        theirs["versions"][_OURS] = facts.versions[_OURS]
    _refuse_differences(study, ours, theirs)
    recorded = model_facts(attributes)
    if recorded is None:
        study_id = storage.get_study_id_from_name(study.study_name)
        record_once(storage, study_id, MODEL_KEY, ours)
        recorded = model_facts(study.user_attrs)
        assert recorded is not None
    _refuse_differences(study, ours, asdict(recorded))


def _refuse_differences(study: optuna.Study, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    if rows := differences(ours, theirs):
        raise ModelError(
            f"this worker's scores would not be comparable with those of study "
            f"{study.study_name!r}: {'; '.join(rows)}; {remedies(ours, theirs)}"
        )


def set_confirmation(study: optuna.Study, row: dict[str, Any]) -> None:
    """Write the held-out result of a study's best mask."""
    study.set_user_attr(CONFIRMATION_KEY, row)
    if unconfirmed(study.user_attrs) is not None:  # an earlier failure, on other documents
        study.set_user_attr(UNCONFIRMED_KEY, None)


def confirmation(user_attrs: dict[str, Any]) -> dict[str, Any] | None:
    """The held-out result of a study's best mask, if it was confirmed."""
    row = user_attrs.get(CONFIRMATION_KEY)
    return row if isinstance(row, dict) else None


def set_unconfirmed(study: optuna.Study, row: dict[str, Any]) -> None:
    """Write why a study's best mask has no held-out result."""
    study.set_user_attr(UNCONFIRMED_KEY, row)


def unconfirmed(user_attrs: dict[str, Any]) -> dict[str, Any] | None:
    """Why a study's best mask has no held-out result; None if no worker failed to confirm it."""
    row = user_attrs.get(UNCONFIRMED_KEY)
    return row if isinstance(row, dict) else None


def set_tolerance(study: optuna.Study, tolerance: Sequence[ToleranceEntry], *, late: bool) -> None:
    """Write a tolerance that replaces the one in the stored study file.

    Args:
        study: one of the studies of a study file.
        tolerance: the new tolerance.
        late: whether held-out results were known when the tolerance was given.
    """
    rows = [entry.model_dump(mode="json") for entry in tolerance]
    study.set_user_attr(TOLERANCE_KEY, {"tolerance": rows, "late": late})


def tolerance_of(study: optuna.Study) -> tuple[list[ToleranceEntry], bool]:
    """The tolerance, and whether it was given when held-out results were known."""
    row = study.user_attrs.get(TOLERANCE_KEY)
    if isinstance(row, dict):
        return [ToleranceEntry(**entry) for entry in row["tolerance"]], bool(row["late"])
    facts = study_facts(study.user_attrs)
    return ([] if facts is None else facts.study_spec.tolerance), False
