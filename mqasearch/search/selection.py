"""Optuna studies with their selectors: what a name means, and what is left to do in each."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import optuna
from optuna.trial import FrozenTrial, TrialState

from mqasearch.errors import StorageError, unknown_name
from mqasearch.mask import LayerMask
from mqasearch.search.attributes import StudyFacts, model_facts, study_facts
from mqasearch.search.ending import (
    fault_of_all,
    fault_of_masks,
    fault_of_original,
    why_masks,
    why_original,
)
from mqasearch.search.generations import meant_by
from mqasearch.search.sampler import SharedSampler
from mqasearch.search.storage_cached import TrialCache
from mqasearch.search.storage_optuna import SharedStorage
from mqasearch.selectors import INVALID_KEY, History, Selector, selector_of


class Outlook(Enum):
    """What a study has for a worker that is free."""

    READY = "ready"
    """A mask to score now."""
    WAIT = "wait"
    """Whatever comes next depends on trials that are running."""
    DONE = "done"
    """Nothing is left."""


@dataclass(frozen=True, slots=True)
class Look:
    """What was found of a study at one moment.

    Attributes:
        outlook: whether a trial can be started.
        newest: Optuna's ``trial_id`` of the newest trial, −1 if there is none; None where an
            enqueued trial is to be run and no new one made.
    """

    outlook: Outlook
    newest: int | None


@dataclass
class Selection:
    """One selector's Optuna study.

    The facts are those that were read when it was opened, or by ``has_more``.
    """

    facts: StudyFacts
    study: optuna.Study
    sampler: SharedSampler

    def outlook(self) -> Outlook:
        """Whether a trial can be started now, must wait for running ones, or is not needed."""
        return self.look().outlook

    def trials(self) -> list[FrozenTrial]:
        """Every trial of the study by number.

        Raises:
            StorageError: somebody has deleted the study.
        """
        try:
            return self.study.get_trials(deepcopy=False)
        except KeyError:
            raise self._deleted() from None

    def look(self) -> Look:
        """``outlook``, and what it holds for."""
        trials = self.trials()
        if fault_of_original(self.facts, trials) is not None:
            return Look(Outlook.DONE, None)
        if fault_of_masks(self.facts, trials) is not None:
            return Look(_done_after_running(trials), None)
        if any(trial.state == TrialState.WAITING for trial in trials):
            return Look(Outlook.READY, None)
        return Look(self._outlook(trials), trials[-1]._trial_id if trials else -1)

    def _outlook(self, trials: Sequence[FrozenTrial]) -> Outlook:
        """Of a study none of whose trials is waiting."""
        if self.facts.n_trials is not None:  # a killed worker's trial does not count
            failed = [trial for trial in trials if trial.state == TrialState.FAIL]
            spent = len(trials) - sum(INVALID_KEY not in trial.user_attrs for trial in failed)
            if spent >= self.facts.n_trials:
                return _done_after_running(trials)
        wanted = self.selector.wants(self.history(trials))
        if wanted.masks:
            return Outlook.READY
        return Outlook.DONE if wanted.done else Outlook.WAIT

    @property
    def selector(self) -> Selector:
        """That chooses the masks."""
        return self.sampler.selector

    def history(self, trials: Sequence[FrozenTrial] | None = None) -> History:
        """All that the study knows about masks; ``trials``: all of them, if just read."""
        return self.sampler.history(self.study, trials)

    def has_more(self) -> bool:
        """Read the facts again: whether somebody has added trials since they were read."""
        try:
            facts = study_facts(self.study.user_attrs)
        except KeyError:
            raise self._deleted() from None
        if facts is None or facts.extension == self.facts.extension:
            return False
        preference = self.sampler.prefer
        self.facts, self.sampler = facts, SharedSampler(_selector(facts))
        self.sampler.prefer = preference
        self.study.sampler = self.sampler
        return True

    def _deleted(self) -> StorageError:
        name = self.study.study_name
        return StorageError(f"study {name!r} is no longer in the database; somebody deleted it")

    def fault_of_original(self) -> str | None:
        """Why the original model cannot be scored, as far as this study knows."""
        return fault_of_original(self.facts, self.trials())

    def fault_of_masks(self) -> str | None:
        """Why this study ended although its plan or its trials did not, or found no mask."""
        if self.outlook() != Outlook.DONE:
            return None
        trials = self.trials()
        return fault_of_masks(self.facts, trials) or fault_of_all(self.facts, trials)

    def dtype(self) -> str | None:
        """That scores are computed in; None before the first worker."""
        agreed = model_facts(self.study.user_attrs)
        return None if agreed is None else agreed.dtype

    def certain(self) -> Sequence[LayerMask]:
        """Masks that will be asked for, whatever those that are running score."""
        if self.facts.n_trials is not None:  # the number of trials may cut a plan short
            return ()
        return self.selector.wants(self.history()).certain

    def expected_trials(self) -> int:
        """About how many trials the study will have; a plan may end earlier or later."""
        if self.facts.n_trials is not None:
            return self.facts.n_trials
        layers, budget = self.facts.n_layers, self.facts.n_converted
        return {
            "alternating": 1 + budget,
            "consecutive": 2 + budget.bit_length(),
            "sensitivity": layers + budget,
            "greedy": 1 + layers + 2 * (budget - 1),
            "gp": 1 + layers + getattr(self.selector, "n_masks", 0),
            "exhaustive": math.comb(layers, budget),
        }.get(self.facts.selector, len(self.study.get_trials(deepcopy=False)))

    def trials_left(self) -> int:
        """About how many trials are to be finished; 0 once the study is done."""
        if self.outlook() == Outlook.DONE:
            return 0
        done = sum(
            trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
            for trial in self.study.get_trials(deepcopy=False)
        )
        return max(1, self.expected_trials() - done)


def _done_after_running(trials: Sequence[FrozenTrial]) -> Outlook:
    running = any(trial.state == TrialState.RUNNING for trial in trials)
    return Outlook.WAIT if running else Outlook.DONE


def why_ended(selections: Sequence[Selection]) -> str | None:
    """One line on studies of a study file that ended because scores are missing, if any did."""
    for selection in selections:
        if (fault := selection.fault_of_original()) is not None:
            return why_original(selection.facts, fault, selection.dtype())
    faults = {s.study.study_name: fault for s in selections if (fault := s.fault_of_masks())}
    if not faults:
        return None
    return why_masks(list(faults), [*faults.values()][-1], selections[0].dtype())


def known_studies(storage: optuna.storages.BaseStorage) -> dict[str, StudyFacts]:
    """Every Optuna study that mqasearch created, by name."""
    return {
        study.study_name: facts
        for study in storage.get_all_studies()  # whose summaries would read every trial
        if (facts := study_facts(study.user_attrs)) is not None
    }


def find_studies(storage: optuna.storages.BaseStorage, name: str) -> dict[str, StudyFacts]:
    """The Optuna studies that ``name`` means: one selector, a comparison, or a whole study file.

    Of what was searched again on more documents the latest ones; see
    :mod:`mqasearch.search.generations`.

    Raises:
        StorageError: no such name, with the names there are.
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


def studies_of_file(storage: optuna.storages.BaseStorage, name: str) -> list[optuna.Study]:
    """Every Optuna study of the study file that ``name`` is a part of; read, not to be run.

    Raises:
        StorageError: no such name, with the names there are.
    """
    known = known_studies(storage)
    file = next(iter(find_studies(storage, name).values())).study
    return [
        optuna.load_study(study_name=study, storage=storage)
        for study, facts in known.items()
        if facts.study == file
    ]


def open_selections(
    storage: optuna.storages.BaseStorage, studies: dict[str, StudyFacts]
) -> list[Selection]:
    """Load each study with its selector."""
    if isinstance(storage, SharedStorage):
        storage = TrialCache(storage)
    return [_open_selection(storage, name, facts) for name, facts in studies.items()]


def _open_selection(
    storage: optuna.storages.BaseStorage, name: str, facts: StudyFacts
) -> Selection:
    sampler = SharedSampler(_selector(facts))
    study = optuna.load_study(study_name=name, storage=storage, sampler=sampler)
    return Selection(facts, study, sampler)


def _selector(facts: StudyFacts) -> Selector:
    return selector_of(
        facts.selector,
        facts.n_layers,
        facts.n_converted,
        facts.study_spec.seed,
        **facts.parameters,
    )


def fail_stale_trials(study: optuna.Study) -> None:
    """Fail the running trials whose worker has not been heard of for the grace period."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        optuna.storages.fail_stale_trials(study)
