"""Makes Optuna studies from a study file, one per selector and budget.

This may be called again, and from several processes at once. A study's facts are written last. So
if a study has no facts, its creator is still at work, or has died; in the second case the next
caller finishes the study. (If a creator dies within its first transactions, it leaves an empty
study, which cannot be told from somebody else's. Such a study is left alone.)
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import optuna

from mqasearch.conversion import least_tokens
from mqasearch.creation.names import maximizes
from mqasearch.errors import MaskError, SpecError, UserError
from mqasearch.mask import LayerMask, ModelShape
from mqasearch.merging import merge_of
from mqasearch.queue import Queue
from mqasearch.record import (
    ENQUEUED,
    Direction,
    SharedStorage,
    StudyFacts,
    confirmation,
    set_study_facts,
    set_tolerance,
    study_facts,
    tolerance_of,
)
from mqasearch.scoring import PACKAGES
from mqasearch.selectors import SELECTORS, selector_of
from mqasearch.source_code import versions_of
from mqasearch.spec import SelectorEntry, StudySpec, changes
from mqasearch.study import earlier, hold_out, known_studies, mark, refusal

CREATOR_KEY = "mqasearch:creator"
"""An attribute of a study that mqasearch is making; it is written before the study's facts."""

_PATIENCE_SECONDS = 5.0


def create_studies(storage: SharedStorage, spec: StudySpec, shape: ModelShape) -> list[str]:
    """Create the missing Optuna studies and return the names of all, in the spec's order.

    Raises:
        SpecError: the spec does not fit the model; all faults at once.
        UserError: a study of that name exists with another spec or direction, or the metrics cannot
            be one objective.
    """
    spec = spec.with_sizes(shape)
    check_fits(spec, shape)
    direction: Direction = "maximize" if maximizes(spec.metrics) else "minimize"
    known = known_studies(storage)
    plans = []
    for comparison, one in spec.comparisons().items():
        present = earlier(comparison, known)
        plans.append((comparison, one, present, mark(present, one)))
    common = next((suffix for *_, suffix in plans if suffix), "")  # for budgets added later too
    names = []
    for comparison, one, present, own in plans:  # here ``mark`` has refused none of them
        suffix = own if present else common
        hold_out(storage, present, one)
        n_more = {facts.selector: facts.n_more for facts in present.values()}
        for facts in _plan(spec.name + suffix, comparison + suffix, one, shape, direction):
            extended = facts.extended(n_more.get(facts.selector, 0))
            names.append(_create(storage, extended, _masks(extended, one)))
    _agree_on_tolerance([optuna.load_study(study_name=n, storage=storage) for n in names], spec)
    return names


def _agree_on_tolerance(studies: Sequence[optuna.Study], spec: StudySpec) -> None:
    """Store the spec's tolerance in all studies.

    It may be given later, since no score depends on it; the verdict says if it was.
    """
    known = any(confirmation(study.user_attrs) is not None for study in studies)
    for study in studies:
        if tolerance_of(study)[0] != spec.tolerance:
            facts = study_facts(study.user_attrs)
            first = [] if facts is None else facts.study_spec.tolerance
            set_tolerance(study, spec.tolerance, late=known and spec.tolerance != first)


def check_fits(spec: StudySpec, shape: ModelShape) -> None:
    """Check that the budgets, the target and the enqueued masks fit the model.

    Raises:
        SpecError: something does not fit; all faults at once.
    """
    faults = []
    target = spec.target_kv_heads
    if shape.n_kv_heads <= target:
        faults.append(
            f"target_kv_heads: the model has {shape.n_kv_heads} KV head(s) a layer already; "
            f"nothing to merge to {target}"
        )
    elif shape.n_kv_heads % target:
        faults.append(
            f"target_kv_heads: {target} does not divide the model's {shape.n_kv_heads} KV heads"
        )
    else:
        for entry in spec.budget:
            if entry.budget.n_converted(shape, target) > shape.n_layers:
                faults.append(
                    f"budget: {entry.budget} cannot be met by a model of {shape.n_layers} layers; "
                    f"choose at most {shape.n_layers} layers"
                )
                continue
            faults += _selector_faults(spec, shape, entry.budget.n_converted(shape, target))
    faults += _calibration_faults(spec, shape)
    first: dict[frozenset[int], str] = {}
    for name, layers in spec.enqueue.items():
        if (other := first.setdefault(frozenset(layers), name)) != name:
            faults.append(f"enqueue.{name}: the same layers as {other}; give one of them")
        if not layers:
            faults.append(f"enqueue.{name}: names no layer; the original is scored in every study")
        try:
            LayerMask.of(layers, shape.n_layers)
        except MaskError as error:
            faults.append(f"enqueue.{name}: {error}")
    if faults:
        raise SpecError(spec.name, faults)


def _calibration_faults(spec: StudySpec, shape: ModelShape) -> list[str]:
    """Whether the calibration text is too short.

    A worker would find that too, but only when the study exists and can no longer be changed.
    """
    merge = merge_of(spec.merge.name, **spec.merge.parameters)
    need, have = least_tokens(shape.n_heads, shape.head_dim), spec.documents.calibration_tokens
    if not merge.is_fitted or have >= need:
        return []
    fit = "refit" if merge.refit else "tune"
    return [
        f"documents.calibration_tokens: {have} are too few for the {fit} of this model; give "
        f"{need} or more, or the merge {fit}: false"
    ]


def _selector_faults(spec: StudySpec, shape: ModelShape, n_converted: int) -> list[str]:
    """What the selectors object to in the number of layers, the budget or the number of trials."""
    faults = []
    for entry in spec.selectors:
        try:
            selector = selector_of(
                entry.name, shape.n_layers, n_converted, spec.seed, **entry.parameters
            )
        except UserError as error:
            faults.append(f"selectors.{entry.name}: {error}")
            continue
        n_trials, least = _n_trials(spec, entry), selector.least_trials()
        if n_trials is not None and n_trials < least:
            faults.append(
                f"selectors.{entry.name}: with n_trials {n_trials} it ends before its first "
                f"mask of {n_converted} layers; give {least} or more"
                + (", or none" if selector.ends else "")
            )
    return faults


def _n_trials(spec: StudySpec, selector: SelectorEntry) -> int | None:
    """The number of the selector's trials; None if its plan ends by itself."""
    return selector.n_trials or (None if SELECTORS[selector.name].ends else spec.n_trials)


def versions() -> dict[str, str]:
    """The versions of the packages that a score depends on."""
    return versions_of(("mqasearch", *PACKAGES))


def _plan(
    study: str, comparison: str, spec: StudySpec, shape: ModelShape, direction: Direction
) -> list[StudyFacts]:
    target = spec.target_kv_heads
    budget = spec.budget[0].budget.n_converted(shape, target)
    rows: list[tuple[str, int, int | None]] = [
        (selector.name, budget, _n_trials(spec, selector)) for selector in spec.selectors
    ]
    if spec.enqueue:
        largest = max(len(set(layers)) for layers in spec.enqueue.values())
        rows.append((ENQUEUED, largest, None))
    return [
        StudyFacts(
            study=study,
            comparison=comparison,
            selector=selector,
            n_converted=n_converted,
            n_layers=shape.n_layers,
            shape=asdict(shape),
            n_trials=n_trials,
            direction=direction,
            spec=spec.model_dump(mode="json"),
            versions=versions(),
        )
        for selector, n_converted, n_trials in rows
    ]


def _masks(facts: StudyFacts, spec: StudySpec) -> dict[str, LayerMask]:
    masks = {"original": LayerMask.empty(facts.n_layers)}
    if facts.selector == ENQUEUED:
        masks |= {
            name: LayerMask.of(layers, facts.n_layers) for name, layers in spec.enqueue.items()
        }
    return masks


def _create(storage: SharedStorage, facts: StudyFacts, masks: Mapping[str, LayerMask]) -> str:
    name = facts.name
    queue = Queue(storage.engine, storage.patience)
    study, theirs = _open(storage, queue, name, facts.direction)
    if theirs is None:
        study_id = storage.get_study_id_from_name(name)
        for label, mask in masks.items():
            queue.enqueue(study_id, label, str(mask))
        set_study_facts(study, facts)
    elif differing := changes(theirs.study_spec, facts.study_spec):
        raise UserError(refusal(name, differing))
    elif theirs.direction != facts.direction:
        raise UserError(
            f"study {name!r} exists and was told to {theirs.direction} what it must "
            f"{facts.direction}; choose another name for the study, or another --storage"
        )
    return name


def _open(
    storage: SharedStorage, queue: Queue, name: str, direction: Direction
) -> tuple[optuna.Study, StudyFacts | None]:
    """The study, and its facts; None instead of the facts if the caller must finish the study."""
    try:
        study = optuna.create_study(study_name=name, storage=storage, direction=direction)
    except optuna.exceptions.DuplicatedStudyError:
        study = optuna.load_study(study_name=name, storage=storage)
    else:
        queue.forget(storage.get_study_id_from_name(name))
        study.set_user_attr(CREATOR_KEY, "mqasearch")
        return study, None
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while (facts := study_facts(study.user_attrs)) is None and time.monotonic() < deadline:
        if CREATOR_KEY not in study.user_attrs and study.get_trials(deepcopy=False):
            break
        time.sleep(0.1)
    if facts is None and CREATOR_KEY not in study.user_attrs:
        raise UserError(
            f"study {name!r} exists and was not made by mqasearch; "
            "choose another name for the study, or another --storage"
        )
    return study, facts
