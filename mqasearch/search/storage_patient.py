"""Optuna's storage with patience, and with a quicker way to read trials.

Every operation is tried again while the database is away. Optuna's heartbeat thread would die of
the first failure, and ``tell`` would lose the result. What only reads takes no write lock on
SQLite.
"""

from collections.abc import Callable, Container
from typing import Any, Concatenate, ParamSpec, TypeVar

from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import ColumnElement, and_, or_

from mqasearch.results import Patience
from mqasearch.results.reading import reading
from mqasearch.search.storage_trials import read_trials

P = ParamSpec("P")
T = TypeVar("T")


def reading_patiently(
    method: Callable[Concatenate[RDBStorage, P], T],
) -> Callable[Concatenate[RDBStorage, P], T]:
    """A method of ``RDBStorage`` that only reads."""

    def once(self: RDBStorage, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with reading():
            return method(self, *args, **kwargs)

    once.__name__ = method.__name__
    return patiently(once)


def patiently(
    method: Callable[Concatenate[RDBStorage, P], T],
) -> Callable[Concatenate[RDBStorage, P], T]:
    """A method of ``RDBStorage`` that may be called twice for the same effect."""

    def patient(self: RDBStorage, /, *args: P.args, **kwargs: P.kwargs) -> T:
        assert isinstance(self, PatientStorage)
        self.flush()
        return self.patience(lambda: method(self, *args, **kwargs))

    patient.__name__ = method.__name__
    return patient


_opening = reading
"""Optuna, while it opens a database, asks on one connection while it holds another: with SQLite's
write lock taken it would wait for itself."""


class PatientStorage(RDBStorage):
    """See the module.

    Args:
        url: as Optuna takes it.
        patience: how long to wait for a database that is away.
        settings: further keyword arguments of ``RDBStorage``.
    """

    def __init__(self, url: str, patience: Patience, **settings: Any) -> None:
        self.patience = patience
        self._studies: set[int] = set()
        """Studies that are known to exist."""
        with _opening():
            super().__init__(url, **settings)

    def __setstate__(self, state: dict[Any, Any]) -> None:
        with _opening():
            super().__setstate__(state)

    def flush(self) -> None:
        """Write whatever is kept back; called before anything else is asked."""

    create_new_study = patiently(RDBStorage.create_new_study)
    set_study_user_attr = patiently(RDBStorage.set_study_user_attr)
    set_study_system_attr = patiently(RDBStorage.set_study_system_attr)
    get_study_id_from_name = reading_patiently(RDBStorage.get_study_id_from_name)
    get_study_name_from_id = reading_patiently(RDBStorage.get_study_name_from_id)
    get_study_directions = reading_patiently(RDBStorage.get_study_directions)
    get_study_user_attrs = reading_patiently(RDBStorage.get_study_user_attrs)
    get_study_system_attrs = reading_patiently(RDBStorage.get_study_system_attrs)
    get_all_studies = reading_patiently(RDBStorage.get_all_studies)

    set_trial_param = patiently(RDBStorage.set_trial_param)
    set_trial_intermediate_value = patiently(RDBStorage.set_trial_intermediate_value)
    set_trial_user_attr = patiently(RDBStorage.set_trial_user_attr)
    set_trial_system_attr = patiently(RDBStorage.set_trial_system_attr)
    get_trial_param = reading_patiently(RDBStorage.get_trial_param)
    get_trial_user_attrs = reading_patiently(RDBStorage.get_trial_user_attrs)
    get_trial_system_attrs = reading_patiently(RDBStorage.get_trial_system_attrs)
    get_trial_id_from_study_id_trial_number = reading_patiently(
        RDBStorage.get_trial_id_from_study_id_trial_number
    )
    _get_best_trial_id = reading_patiently(RDBStorage._get_best_trial_id)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """As Optuna's, which says KeyError where there is none."""
        found = self._read_trials(models.TrialModel.trial_id == trial_id)
        if not found:
            raise KeyError(models.NOT_FOUND_MSG)
        return found[0]

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        """Trials newer than one, and some older ones: those that were not finished."""
        if study_id not in self._studies:
            self.get_study_name_from_id(study_id)  # KeyError where there is none
            self._studies.add(study_id)
        condition = models.TrialModel.trial_id > trial_id_greater_than
        if older := sorted(n for n in included_trial_ids if n <= trial_id_greater_than):
            condition = or_(condition, models.TrialModel.trial_id.in_(older))
        condition = and_(models.TrialModel.study_id == study_id, condition)
        if states is not None:
            wanted = [state for state in TrialState if state in states]
            condition = and_(condition, models.TrialModel.state.in_(wanted))
        found = self._read_trials(condition)
        if states is None and not included_trial_ids <= {trial._trial_id for trial in found}:
            self._studies.discard(study_id)
            self.get_study_name_from_id(study_id)  # KeyError where somebody has deleted it
        return found

    def _read_trials(self, condition: ColumnElement[bool]) -> list[FrozenTrial]:
        def once() -> list[FrozenTrial]:
            with reading(), self.engine.connect() as connection:
                return read_trials(connection, condition)

        self.flush()
        return self.patience(once)

    def delete_study(self, study_id: int) -> None:
        """As Optuna's. Deleting what an earlier attempt has deleted is success."""
        self._studies.discard(study_id)
        attempts = 0

        def once() -> None:
            nonlocal attempts
            attempts += 1
            try:
                RDBStorage.delete_study(self, study_id)
            except KeyError:
                if attempts == 1:
                    raise

        self.patience(once)
