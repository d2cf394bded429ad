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

from mqasearch.budget import Budget
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
from mqasearch.search_space import SearchSpace
from mqasearch.selectors import SELECTORS, selector_of
from mqasearch.source_code import versions_of
from mqasearch.spec import NamedMask, SelectorEntry, StudySpec, changes
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
    levels = _level_faults(spec, shape)
    faults += levels
    for entry in spec.budget if not levels else ():
        measured = None if entry.latency is None else entry.latency.n_layers
        if measured not in (None, shape.n_layers):
            faults.append(
                f"budget: the times are those of a model of {measured} layers, and this one has "
                f"{shape.n_layers}; measure this one with `mqasearch latency`"
            )
            continue
        try:
            space = entry.budget.space(shape, spec.kv_heads)
        except UserError as error:
            faults.append(_budget_fault(spec, shape, entry.budget, error))
        else:
            faults += _selector_faults(spec, space)
    faults += _calibration_faults(spec, shape)
    if not levels:
        faults += _enqueue_faults(spec, shape)
    if faults:
        raise SpecError(spec.name, faults)


def _level_faults(spec: StudySpec, shape: ModelShape) -> list[str]:
    """Which numbers of KV heads a layer of the model cannot have."""
    have = shape.n_kv_heads
    smaller = [n for n in range(1, have) if have % n == 0]
    return [
        f"kv_heads: the model has {have} KV head(s) a layer already; nothing to merge to {number}"
        + (f"; possible: {', '.join(map(str, smaller))}" if smaller else "")
        if number >= have
        else f"kv_heads: {number} does not divide the model's {have} KV heads; "
        f"possible: {', '.join(map(str, smaller))}"
        for number in spec.kv_heads
        if number >= have or have % number
    ]


def _budget_fault(spec: StudySpec, shape: ModelShape, budget: Budget, error: UserError) -> str:
    """Why no mask meets a budget."""
    if budget.decode_ms is not None:
        return f"budget: {error}"
    smallest = min(spec.kv_heads)
    if len(spec.kv_heads) == 1:
        return (
            f"budget: {budget} cannot be met by a model of {shape.n_layers} layers; "
            f"choose at most {shape.n_layers} layers"
        )
    return (
        f"budget: {budget} cannot be met: with {smallest} KV head(s) in every layer, "
        f"{smallest / shape.n_kv_heads:.3g} of the cache is left; choose that much or more"
    )


def _enqueue_faults(spec: StudySpec, shape: ModelShape) -> list[str]:
    """What is wrong with the masks that are enqueued by name."""
    faults = []
    first: dict[LayerMask, str] = {}
    for name, layers in spec.enqueue.items():
        try:
            mask = named_mask(layers, spec, shape)
        except MaskError as error:
            faults.append(f"enqueue.{name}: {error}")
            continue
        if not mask.n_converted:
            faults.append(f"enqueue.{name}: names no layer; the original is scored in every study")
        elif (other := first.setdefault(mask, name)) != name:
            faults.append(f"enqueue.{name}: the same layers as {other}; give one of them")
    return faults


def named_mask(layers: NamedMask, spec: StudySpec, shape: ModelShape) -> LayerMask:
    """The mask that a study file enqueues by name.

    Args:
        layers: the layers that get the only number of KV heads, or number → layers.
        spec: the study.
        shape: the model's shape.

    Raises:
        MaskError: no such layer or number, or a layer that is named twice.
    """
    numbers = sorted(spec.kv_heads, reverse=True)
    if not isinstance(layers, dict):
        if len(numbers) > 1:
            raise MaskError(f"say how many KV heads the layers get: {{{numbers[-1]}: {layers}}}")
        layers = {numbers[0]: layers}
    mask = LayerMask.empty(shape.n_layers)
    for number, of_number in layers.items():
        if number not in numbers:
            raise MaskError(
                f"{number} is not one of the study's kv_heads: {', '.join(map(str, spec.kv_heads))}"
            )
        if twice := sorted(set(of_number) & set(mask.layers)):
            raise MaskError(f"layers {twice} get two numbers of KV heads; give one")
        level = numbers.index(number) + 1
        added = LayerMask.of(of_number, shape.n_layers, level)
        mask = LayerMask(tuple(map(max, mask.levels, added.levels)))
    return mask


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


def _selector_faults(spec: StudySpec, space: SearchSpace) -> list[str]:
    """What the selectors object to in the search space, the budget or the number of trials."""
    faults = []
    for entry in spec.selectors:
        try:
            selector = selector_of(entry.name, space, spec.seed, **entry.parameters)
        except UserError as error:
            faults.append(f"selectors.{entry.name}: {error}")
            continue
        n_trials, least = _n_trials(spec, entry), selector.least_trials()
        of = f"of {space.least} layers" if space.n_levels == 1 else "at the budget"
        if n_trials is not None and n_trials < least:
            faults.append(
                f"selectors.{entry.name}: with n_trials {n_trials} it ends before its first "
                f"mask {of}; give {least} or more" + (", or none" if selector.ends else "")
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
    space = spec.budget[0].budget.space(shape, spec.kv_heads)
    rows: list[tuple[str, int, int | None]] = [
        (selector.name, space.least, _n_trials(spec, selector)) for selector in spec.selectors
    ]
    if spec.enqueue:
        masks = [named_mask(layers, spec, shape) for layers in spec.enqueue.values()]
        rows.append((ENQUEUED, max(map(space.saved, masks)), None))
    return [
        StudyFacts(
            study=study,
            comparison=comparison,
            selector=selector,
            least=least,
            n_layers=shape.n_layers,
            shape=asdict(shape),
            n_trials=n_trials,
            direction=direction,
            spec=spec.model_dump(mode="json"),
            versions=versions(),
            savings=list(space.savings) if spec.budget[0].latency is not None else [],
        )
        for selector, least, n_trials in rows
    ]


def _masks(facts: StudyFacts, spec: StudySpec) -> dict[str, LayerMask]:
    masks = {"original": LayerMask.empty(facts.n_layers)}
    if facts.selector == ENQUEUED:
        shape = ModelShape(**facts.shape)
        masks |= {name: named_mask(layers, spec, shape) for name, layers in spec.enqueue.items()}
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
