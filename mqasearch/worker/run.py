"""The main job, end to end: create, work, confirm. Reads like a table of contents."""

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
    """Who looks on; each is called with the selection at hand.

    Attributes:
        on_start: before every trial.
        on_trial: after every trial, with what it found; None if it has no score.
        on_confirm: before a mask is confirmed.
    """

    on_start: Callable[[Selection], None] = lambda _: None
    on_trial: Callable[[Selection, FinishedTrial | None], None] = lambda _, __: None
    on_confirm: Callable[[Selection], None] = lambda _: None


@dataclass(frozen=True, slots=True)
class Limits:
    """When a worker stops although there is work left.

    Attributes:
        n_trials: that it runs.
        timeout: seconds after which it starts no trial.
        idle_timeout: seconds of waiting for other workers' trials.
    """

    n_trials: int | None = None
    timeout: float | None = None
    idle_timeout: float | None = None


NO_LIMITS = Limits()


def sized(spec: StudySpec) -> StudySpec:
    """The spec with the sizes that ``budget: auto`` means for its model; needs its config."""
    return spec if spec.budget else spec.with_sizes(model_shape(spec))


def create(storage: Storage, spec: StudySpec) -> list[str]:
    """Create the Optuna studies of a study file; needs the model's config, not its weights."""
    return create_studies(storage.optuna, spec, model_shape(spec))


def add_trials(storage: Storage, name: str, more: More) -> dict[str, tuple[int, int]]:
    """Give the studies that ``name`` means more trials; how many each had, and has."""
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
    """Be one worker of the studies that ``name`` means; confirm them if they end.

    Args:
        storage: where the studies are.
        name: of a comparison, or of one of its studies.
        device: as ``open_scoring`` takes it.
        limits: of this worker.
        watcher: told what happens.
        trust_remote_code: the study may run code that comes with its model. Whoever starts the
            worker decides that: others may write to the database.

    Returns:
        The number of trials this worker ran.

    Raises:
        UserError: the study asks for such code, and it is not trusted.
    """
    studies = find_studies(storage.optuna, name)
    spec = next(iter(studies.values())).study_spec
    if spec.model.trust_remote_code and not trust_remote_code:
        raise UserError(
            f"study {name!r} runs code that comes with the model {spec.model.name!r}: if you trust "
            "it, give --trust-remote-code"
        )
    if all(each.fault_of_original() for each in open_selections(storage.optuna, studies)):
        return 0  # nobody has to load the model to see that
    scoring = open_scoring(spec, device)
    return work_with(scoring, storage, studies, limits, watcher)


def work_with(
    scoring: Scoring,
    storage: Storage,
    studies: Mapping[str, StudyFacts],
    limits: Limits,
    watcher: Watcher,
) -> int:
    """``work``, with a scorer that is already there."""
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
        target_kv_heads=spec.target_kv_heads,
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
        record.catch_up()  # with what others finished last
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
    """lm-eval's version of each task of a study, as this worker has it."""
    versions = {}
    for task in spec.task_specs:
        documents = Documents("search", task.limit, spec.documents.seed)
        versions[task.name] = scorer.key(scorer.shape.original, task, documents).task_version
    return versions


def stop_rule(spec: StudySpec) -> StopRule | None:
    """When a mask is given up; None where every mask is scored in full."""
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
        return  # nothing is left to confirm on, or wanted
    confirm(ended, evaluator, spec.documents.confirmation, watcher.on_confirm, healer)
