"""Optuna studies with their selectors: which studies a name means, and what is left to do."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

import optuna
from optuna.storages import BaseStorage

from mqasearch.errors import StorageError, unknown_name
from mqasearch.mask import LayerMask
from mqasearch.queue import Queue, Task
from mqasearch.record import ENQUEUED, SharedStorage, StudyFacts, model_facts, study_facts
from mqasearch.search_space import SearchSpace
from mqasearch.selectors import History, MaskTrial, Selector, repaired, selector_of
from mqasearch.study.ending import (
    fault_of_all,
    fault_of_masks,
    fault_of_original,
    why_masks,
    why_original,
)
from mqasearch.study.generations import meant_by


class Outlook(Enum):
    """What a study offers to a free worker."""

    READY = "ready"
    """There is a mask to score now."""
    WAIT = "wait"
    """The next mask depends on masks that are being scored."""
    DONE = "done"
    """Nothing is left to score."""


@dataclass(frozen=True, slots=True)
class Look:
    """The state of a study at one moment.

    Attributes:
        outlook: whether a mask can be scored.
        n_tasks: number of tasks that the study had.
        wanted: equally wanted new masks, if no task is free.
    """

    outlook: Outlook
    n_tasks: int
    wanted: Sequence[LayerMask] = ()


@dataclass
class Selection:
    """One selector's study.

    Attributes:
        facts: the study's facts as they were when it was opened, or when ``has_more`` read them.
        study: Optuna's study, which records the trials.
        study_id: Optuna's number of the study.
        selector: chooses the masks.
        queue: the queue of the masks.
    """

    facts: StudyFacts
    study: optuna.Study
    study_id: int
    selector: Selector
    queue: Queue

    def tasks(self) -> list[Task]:
        """Every task of the study, sorted by number."""
        return self.queue.tasks(self.study_id)

    def take(self) -> Task | None:
        """Lease a free task to this worker; None if others have taken all free tasks."""
        return self.queue.take(self.study_id)

    def add(self, look: Look, mask: LayerMask) -> Task | None:
        """Add a task for this worker; None if another worker has added one since ``look``.

        Args:
            look: the study's state when the mask was chosen.
            mask: one of ``look.wanted``.
        """
        return self.queue.add(self.study_id, look.n_tasks, str(mask))

    def outlook(self) -> Outlook:
        """Whether a mask can be scored now, must wait for other masks, or is not needed."""
        return self.look().outlook

    def look(self) -> Look:
        """The outlook, with the number of tasks and the wanted masks that belong to it.

        Raises:
            StorageError: somebody has deleted the study.
        """
        look = self._look(self.tasks())
        if look.outlook != Outlook.READY:
            self._facts_now()
        return look

    def _look(self, tasks: Sequence[Task]) -> Look:
        n_tasks = len(tasks)
        after_running = Outlook.DONE
        if any(task.state == "leased" and not task.is_free for task in tasks):
            after_running = Outlook.WAIT
        if fault_of_original(tasks) is not None:
            return Look(Outlook.DONE, n_tasks)
        if self._fault_of_masks(tasks) is not None:
            return Look(after_running, n_tasks)
        if any(task.is_free for task in tasks):
            return Look(Outlook.READY, n_tasks)
        if self.facts.n_trials is not None and n_tasks >= self.facts.n_trials:
            return Look(after_running, n_tasks)
        wants = self.selector.wants(self.history(tasks))
        if wants.masks:
            return Look(Outlook.READY, n_tasks, wants.masks)
        return Look(Outlook.DONE if wants.done else Outlook.WAIT, n_tasks)

    def history(self, tasks: Sequence[Task] | None = None) -> History:
        """All that the study knows about masks; ``tasks`` are all its tasks, None = read them."""
        sign = -1.0 if self.facts.maximize else 1.0
        tasks = self.tasks() if tasks is None else tasks
        return History([_mask_trial(task, sign) for task in tasks], len(tasks))

    @property
    def space(self) -> SearchSpace:
        """The masks that the study may hold, and its budget."""
        return self.selector.space

    def completed(self, fixed: Mapping[int, int]) -> LayerMask:
        """A mask with the given levels. If some layers are missing, the mask is at the budget.

        Args:
            fixed: layer → level.
        """
        if len(fixed) == self.facts.n_layers:
            return LayerMask(tuple(fixed[layer] for layer in range(len(fixed))))
        history = self.history()
        wanted = self.selector.wants(history).masks
        mask = wanted[0] if wanted else self.selector.spare(history)
        rng = self.selector.generator(history)
        return repaired(self.space, mask, rng, fixed=fixed)

    def has_more(self) -> bool:
        """Read the facts again; True if somebody has added trials since they were last read.

        Raises:
            StorageError: somebody has deleted the study.
        """
        facts = self._facts_now()
        if facts is None or facts.extension == self.facts.extension:
            return False
        self.facts, self.selector = facts, _selector(facts)
        return True

    def _facts_now(self) -> StudyFacts | None:
        try:
            return study_facts(self.study.user_attrs)
        except KeyError:
            name = self.study.study_name
            raise StorageError(
                f"study {name!r} is no longer in the database; somebody deleted it"
            ) from None

    def fault_of_original(self) -> str | None:
        """Why the original model cannot be scored, according to this study's tasks, else None."""
        return fault_of_original(self.tasks())

    def fault_of_masks(self) -> str | None:
        """Why this study ended early, or without a mask that is scored; else None."""
        tasks = self.tasks()
        if self._look(tasks).outlook != Outlook.DONE:
            return None
        return self._fault_of_masks(tasks) or fault_of_all(self.facts, tasks)

    def _fault_of_masks(self, tasks: Sequence[Task]) -> str | None:
        """Why the study ends early because of invalid masks, else None.

        Masks that were enqueued by name never end it: one of them says nothing about the next.
        """
        if self.facts.selector == ENQUEUED:
            return None
        return fault_of_masks(tasks, self.selector.most_invalid_in_a_row())

    def dtype(self) -> str | None:
        """The dtype that scores are computed in; None before the first worker."""
        agreed = model_facts(self.study.user_attrs)
        return None if agreed is None else agreed.dtype

    def certain(self) -> Sequence[LayerMask]:
        """Masks that will be asked for, independent of the scores of running ones."""
        if self.facts.n_trials is not None:  # the number of trials may cut a plan short
            return ()
        return self.selector.wants(self.history()).certain

    def expected_trials(self) -> int:
        """About how many trials the study will have; a plan may end earlier or later."""
        if self.facts.n_trials is not None:
            return self.facts.n_trials
        expected = self.selector.expected_trials()
        return len(self.tasks()) if expected is None else expected

    def trials_left(self) -> int:
        """About how many trials are left to finish; 0 once the study is done."""
        if self.outlook() == Outlook.DONE:
            return 0
        return max(1, self.expected_trials() - sum(task.is_scored for task in self.tasks()))


def _mask_trial(task: Task, sign: float) -> MaskTrial:
    mask = _mask(task.mask)
    if task.state == "complete" or task.state == "pruned":
        assert task.value is not None
        return MaskTrial(task.number, mask, task.state, sign * task.value)
    if task.state == "invalid":
        return MaskTrial(task.number, mask, "invalid", math.inf)
    return MaskTrial(task.number, mask, "running", math.nan)


@lru_cache(maxsize=16384)
def _mask(text: str) -> LayerMask:
    """Parse a mask; each is parsed once, because all of them are read before every trial."""
    return LayerMask.parse(text)


def why_ended(selections: Sequence[Selection]) -> str | None:
    """One line on the studies of a study file that ended because scores are missing; else None."""
    for selection in selections:
        if (fault := selection.fault_of_original()) is not None:
            return why_original(selection.facts, fault, selection.dtype())
    faults = {s.study.study_name: fault for s in selections if (fault := s.fault_of_masks())}
    if not faults:
        return None
    return why_masks(list(faults), [*faults.values()][-1], selections[0].dtype())


def known_studies(storage: BaseStorage) -> dict[str, StudyFacts]:
    """Every Optuna study that mqasearch created, by name."""
    return {
        study.study_name: facts
        for study in storage.get_all_studies()  # study summaries would read every trial
        if (facts := study_facts(study.user_attrs)) is not None
    }


def find_studies(storage: BaseStorage, name: str) -> dict[str, StudyFacts]:
    """The Optuna studies that ``name`` means: one selector, a comparison, or a whole study file.

    If a comparison was searched again on more documents, these are the latest ones; see
    :mod:`mqasearch.study.generations`.

    Raises:
        StorageError: there is no such study; the message lists the names that there are.
    """
    known = known_studies(storage)
    if name in known:
        return {name: known[name]}
    if found := meant_by(name, known):
        return found
    if not known:
        raise StorageError(
            f"no study {name!r}: the database holds none; make one with "
            "`mqasearch create STUDY.yaml --storage URL`"
        )
    offered = {facts.comparison for facts in known.values()} | set(known)
    raise StorageError(unknown_name("study", name, offered))


def facts_of_file(storage: BaseStorage, name: str) -> dict[str, StudyFacts]:
    """Every Optuna study of the study file that ``name`` belongs to.

    Raises:
        StorageError: there is no such study; the message lists the names that there are.
    """
    known = known_studies(storage)
    file = next(iter(find_studies(storage, name).values())).study
    return {study: facts for study, facts in known.items() if facts.study == file}


def studies_of_file(storage: BaseStorage, name: str) -> list[optuna.Study]:
    """The studies of ``facts_of_file``, loaded to be read, not to be run.

    Raises:
        StorageError: there is no such study; the message lists the names that there are.
    """
    names = facts_of_file(storage, name)
    return [optuna.load_study(study_name=study, storage=storage) for study in names]


def open_selections(
    storage: SharedStorage, studies: dict[str, StudyFacts], queue: Queue | None = None
) -> list[Selection]:
    """Load each study with its selector; ``queue`` is a worker's, None if no tasks are taken."""
    queue = queue or Queue(storage.engine, storage.patience)
    return [_open_selection(storage, name, facts, queue) for name, facts in studies.items()]


def _open_selection(
    storage: SharedStorage, name: str, facts: StudyFacts, queue: Queue
) -> Selection:
    study = optuna.load_study(study_name=name, storage=storage)
    return Selection(facts, study, storage.get_study_id_from_name(name), _selector(facts), queue)


def _selector(facts: StudyFacts) -> Selector:
    return selector_of(facts.selector, facts.space, facts.study_spec.seed, **facts.parameters)
