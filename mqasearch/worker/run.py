"""The main job from start to end: create the studies, work, and confirm."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mqasearch.creation import More, create_studies, extend, versions
from mqasearch.errors import UserError
from mqasearch.evaluation import Evaluator, StopRule
from mqasearch.interruption import undisturbed
from mqasearch.queue import Presence, Queue, take_over
from mqasearch.record import ModelFacts, Storage, StudyFacts, agree_on_model
from mqasearch.score import Documents
from mqasearch.scores import Claims, ScoreStore
from mqasearch.scoring import (
    Healer,
    Scorer,
    Scoring,
    model_shape,
    open_scoring,
    scoring_code,
    search_split,
    with_healing,
)
from mqasearch.spec import StudySpec
from mqasearch.study import (
    FinishedTrial,
    Outlook,
    Record,
    Selection,
    facts_of_file,
    fault_of_original,
    find_studies,
    open_selections,
)
from mqasearch.worker.confirm import confirm
from mqasearch.worker.loop import Worker


@dataclass(frozen=True)
class Watcher:
    """Functions that are told what happens; each is called with the selection concerned.

    Attributes:
        on_start: called before every trial.
        on_trial: called after every trial with the finished trial; None if it has no score.
        on_confirm: called before a mask is confirmed.
    """

    on_start: Callable[[Selection], None] = lambda _: None
    on_trial: Callable[[Selection, FinishedTrial | None], None] = lambda _, __: None
    on_confirm: Callable[[Selection], None] = lambda _: None


@dataclass(frozen=True, slots=True)
class Limits:
    """When a worker stops although there is work left.

    Attributes:
        n_trials: the most trials that it runs.
        timeout: seconds after which it starts no trial.
        idle_timeout: the most seconds of waiting for other workers' trials.
    """

    n_trials: int | None = None
    timeout: float | None = None
    idle_timeout: float | None = None


NO_LIMITS = Limits()


def sized(spec: StudySpec) -> StudySpec:
    """The spec with the sizes of ``budget: auto`` for its model; needs the model's config."""
    return spec if spec.budget else spec.with_sizes(model_shape(spec))


def create(storage: Storage, spec: StudySpec) -> list[str]:
    """Create the Optuna studies of a study file; needs the model's config, not its weights."""
    return create_studies(storage.optuna, spec, model_shape(spec))


def add_trials(storage: Storage, name: str, more: More) -> dict[str, tuple[int, int]]:
    """Give the studies that ``name`` means more trials; returns how many each had, and has now."""
    return extend(storage.optuna, find_studies(storage.optuna, name), more)


def work(
    storage: Storage,
    name: str,
    *,
    device: str = "auto",
    limits: Limits = NO_LIMITS,
    watcher: Watcher = Watcher(),
    trust_remote_code: bool = False,
) -> int:
    """Be one worker of the studies that ``name`` means; confirm their best masks if they end.

    Args:
        storage: the storage of the studies.
        name: name of a study file, a comparison or one of its studies.
        device: the device, as ``open_scoring`` takes it.
        limits: when this worker stops although work is left.
        watcher: functions that are told what happens.
        trust_remote_code: whether the study may run code that comes with its model. The caller must
            decide that, because others may write to the database.

    Returns:
        The number of trials that this worker ran.

    Raises:
        UserError: the study asks for such code, and ``trust_remote_code`` is False.
    """
    studies = find_studies(storage.optuna, name)
    spec = next(iter(studies.values())).study_spec
    if spec.model.trust_remote_code and not trust_remote_code:
        raise UserError(
            f"study {name!r} runs code that comes with the model {spec.model.name!r}: if you trust "
            "it, give --trust-remote-code"
        )
    if all(each.fault_of_original() for each in open_selections(storage.optuna, studies)):
        return 0  # known without loading the model
    scoring = open_scoring(spec, device)
    return work_with(scoring, storage, studies, limits, watcher)


def work_with(
    scoring: Scoring,
    storage: Storage,
    studies: Mapping[str, StudyFacts],
    limits: Limits,
    watcher: Watcher,
) -> int:
    """The same as ``work``, with a scorer that is already open."""
    spec = next(iter(studies.values())).study_spec
    presence = Presence(storage.engine, storage.patience, scoring.device, versions())
    queue = Queue(
        storage.engine, storage.patience, worker=presence.worker, lease_seconds=storage.grace
    )
    selections = open_selections(storage.optuna, dict(studies), queue)
    mine = _model_facts(scoring, spec)
    for selection in selections:
        agree_on_model(storage.optuna, selection.study, mine)
    claims = Claims(
        storage.engine,
        ScoreStore(storage.engine, storage.patience),
        storage.patience,
        worker=presence.worker,
        lease_seconds=storage.grace,
    )
    evaluator = Evaluator(
        scoring.scorer,
        claims,
        spec.task_specs,
        numbers=spec.kv_heads,
        search_split=search_split(spec),
        seed=spec.documents.seed,
        maximize=selections[0].facts.maximize,
        rule=stop_rule(spec),
    )
    file = facts_of_file(storage.optuna, next(iter(studies)))
    related = open_selections(storage.optuna, file)
    evaluator.fault_of_original = fault_of_original(
        [task for selection in related for task in selection.tasks()]
    )
    record = Record(storage.optuna, selections, presence.worker)
    worker = Worker(
        selections, evaluator, queue, record, presence, watcher.on_trial, watcher.on_start
    )
    with undisturbed(), presence:
        take_over(queue, presence.worker)
        record.catch_up(within=0)
        with record:
            done = worker.run(limits.n_trials, limits.timeout, limits.idle_timeout)
        ended = [selection for selection in selections if selection.outlook() == Outlook.DONE]
        record.catch_up()  # also with tasks that other workers finished last
        _confirm(ended, evaluator, spec, watcher, scoring.healer)
    return done


def _model_facts(scoring: Scoring, spec: StudySpec) -> ModelFacts:
    return ModelFacts(
        scoring.fingerprint,
        scoring.dtype,
        scoring.merge,
        scoring.calibration,
        versions(),
        task_versions(scoring.scorer, spec),
        scoring.scorer.tokenizer,
        scoring_code() if scoring.healer is None else with_healing(scoring_code()),
    )


def task_versions(scorer: Scorer, spec: StudySpec) -> dict[str, str]:
    """lm-eval's version of each task of a study, as installed here."""
    versions = {}
    for task in spec.task_specs:
        documents = Documents("search", task.limit, spec.documents.seed)
        versions[task.name] = scorer.key(scorer.shape.original, task, documents).task_version
    return versions


def stop_rule(spec: StudySpec) -> StopRule | None:
    """When a mask is given up; None if every mask is scored in full."""
    pruner = spec.pruner
    if pruner is None:
        return None
    return StopRule(pruner.interval_steps, pruner.n_startup_steps, pruner.p_threshold)


def _confirm(
    ended: Sequence[Selection],
    evaluator: Evaluator,
    spec: StudySpec,
    watcher: Watcher,
    healer: Healer | None,
) -> None:
    if not spec.documents.hold_out:
        return  # no documents are left to confirm on, or no confirmation is wanted
    confirm(ended, evaluator, spec.documents.confirmation, watcher.on_confirm, healer)
