"""The main job, end to end: create, work, confirm. Reads like a table of contents."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mqasearch.results import ScoreStore
from mqasearch.samplers import Outlook
from mqasearch.search.attributes import ModelFacts, StudyFacts, agree_on_model
from mqasearch.search.confirm import confirm
from mqasearch.search.create import create_studies, versions
from mqasearch.search.evaluator import Evaluator
from mqasearch.search.scoring import Scoring, model_shape, open_scoring
from mqasearch.search.storage import Storage
from mqasearch.search.worker import Selection, Worker, find_studies, open_selections
from mqasearch.spec import StudySpec


@dataclass(frozen=True)
class Watcher:
    """Who looks on; each is called with the selection at hand.

    Attributes:
        on_start: before every trial.
        on_trial: after every trial.
        on_confirm: before a mask is confirmed.
    """

    on_start: Callable[[Selection], None] = lambda _: None
    on_trial: Callable[[Selection], None] = lambda _: None
    on_confirm: Callable[[Selection], None] = lambda _: None


def create(storage: Storage, spec: StudySpec) -> list[str]:
    """Create the Optuna studies of a study file; needs the model's config, not its weights."""
    return create_studies(storage.optuna, spec, model_shape(spec))


def work(
    storage: Storage,
    name: str,
    *,
    device: str = "auto",
    n_trials: int | None = None,
    timeout: float | None = None,
    watcher: Watcher = Watcher(),
) -> int:
    """Be one worker of the studies that ``name`` means; confirm them if they end.

    Returns:
        The number of trials this worker ran.
    """
    studies = find_studies(storage.optuna, name)
    spec = next(iter(studies.values())).study_spec
    scoring = open_scoring(spec, device)
    return work_with(scoring, storage, studies, n_trials, timeout, watcher)


def work_with(
    scoring: Scoring,
    storage: Storage,
    studies: Mapping[str, StudyFacts],
    n_trials: int | None,
    timeout: float | None,
    watcher: Watcher,
) -> int:
    """``work``, with a scorer that is already there."""
    spec = next(iter(studies.values())).study_spec
    selections = open_selections(storage.optuna, dict(studies))
    mine = ModelFacts(
        scoring.fingerprint, scoring.dtype, scoring.merge, scoring.calibration, versions()
    )
    for selection in selections:
        agree_on_model(selection.study, mine)
    evaluator = Evaluator(
        scoring.scorer,
        ScoreStore(storage.engine),
        spec.task_specs,
        target_kv_heads=spec.target_kv_heads,
        search_split=spec.search_split,
        seed=spec.documents.seed,
    )
    worker = Worker(selections, evaluator, watcher.on_trial, watcher.on_start)
    done = worker.run(n_trials, timeout)
    _confirm_ended(selections, evaluator, spec, watcher)
    return done


def _confirm_ended(
    selections: Sequence[Selection], evaluator: Evaluator, spec: StudySpec, watcher: Watcher
) -> None:
    if spec.search_split == "full":
        return  # the search saw every document: nothing is left to confirm on
    ended = [selection for selection in selections if selection.outlook() == Outlook.DONE]
    confirm(ended, evaluator, spec.documents.confirmation, watcher.on_confirm)
