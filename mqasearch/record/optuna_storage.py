"""Optuna's storage for a database that may be away for a while.

It passes every call on to Optuna's own storage, and repeats the calls that may be repeated while
the database does not answer. Calls that only read take no write lock on SQLite. This module does
not depend on the layout of Optuna's tables.
"""

from collections.abc import Callable, Container, Sequence
from typing import Any, TypeVar

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from mqasearch.database import Patience, reads_only

T = TypeVar("T")


def opened(
    url: str,
    engine_kwargs: dict[str, Any],
    patience: Patience,
    *,
    make_tables: bool = False,
    upgrade: bool = False,
) -> "SharedStorage":
    """Open Optuna's storage, wrapped in ours.

    Args:
        url: the URL as Optuna takes it.
        engine_kwargs: the keyword arguments of ``sqlalchemy.create_engine``.
        patience: how long to wait for a database that is away.
        make_tables: whether to make those of Optuna's tables that are missing.
        upgrade: whether to make them, and to bring those of an older Optuna up to the installed
            version.

    Raises:
        RuntimeError: the tables are another Optuna's, and ``upgrade`` is False.
    """
    database = _connected(url, engine_kwargs, make_tables=make_tables or upgrade, check=not upgrade)
    if upgrade and database.get_current_version() != database.get_head_version():
        database.upgrade()
    reader = database
    if database.engine.dialect.name == "sqlite":
        reader = _connected(url, engine_kwargs, make_tables=False, check=False)
        database.engine.update_execution_options(**reads_only(False))
    return SharedStorage(database, reader, patience)


def _connected(
    url: str, engine_kwargs: dict[str, Any], *, make_tables: bool, check: bool
) -> RDBStorage:
    """Optuna's storage, without SQLite's write lock.

    While Optuna opens a database, it queries on one connection while it holds another. If each took
    the write lock, it would wait for itself.
    """
    return RDBStorage(
        url,
        engine_kwargs | {"execution_options": reads_only()},
        skip_compatibility_check=not check,
        skip_table_creation=not make_tables,
    )


class SharedStorage(BaseStorage):
    """Optuna's storage with repeated calls; see the module's docstring.

    Attributes:
        engine: SQLAlchemy's engine; our own tables use the same connections.
        patience: how long to wait for a database that is away.

    Args:
        database: Optuna's own storage.
        reader: another storage of the same database, whose transactions only read; or ``database``.
        patience: how long to wait for a database that is away.
    """

    def __init__(self, database: RDBStorage, reader: RDBStorage, patience: Patience) -> None:
        self.engine = database.engine
        self.patience = patience
        self._database = database
        self._reader = reader
        self._reads = optuna.storages.get_storage(reader)
        """Reads a finished trial once."""

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy in another process has connections of its own."""
        database = self._database
        return opened, (database.url, database.engine_kwargs, self.patience)

    def remove_session(self) -> None:
        """Close this thread's sessions."""
        self._database.remove_session()
        self._reads.remove_session()

    def close(self) -> None:
        """Close this storage's connections; those of other storages stay open."""
        self.remove_session()
        self.engine.dispose()
        self._reader.engine.dispose()

    def _forget(self) -> None:
        """Drop the trials that were read: SQLite gives numbers of deleted ones to new ones."""
        self._reads = optuna.storages.get_storage(self._reader)

    def _patiently(self, call: Callable[[], T]) -> T:
        def once() -> T:
            try:
                return call()
            except Exception:
                self.remove_session()  # a session that failed cannot be used any more
                raise

        return self.patience(once)

    def create_new_study(
        self, directions: Sequence[StudyDirection], study_name: str | None = None
    ) -> int:
        """Same as Optuna's own."""
        made = self._patiently(lambda: self._database.create_new_study(directions, study_name))
        self._forget()
        return made

    def delete_study(self, study_id: int) -> None:
        """Same as Optuna's own, but succeeds if an earlier attempt has deleted the study."""
        attempts = 0

        def once() -> None:
            nonlocal attempts
            attempts += 1
            try:
                self._database.delete_study(study_id)
            except KeyError:
                if attempts == 1:
                    raise

        self._patiently(once)
        self._forget()

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """Same as Optuna's own."""
        self._patiently(lambda: self._database.set_study_user_attr(study_id, key, value))

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """Same as Optuna's own."""
        self._patiently(lambda: self._database.set_study_system_attr(study_id, key, value))

    def get_study_id_from_name(self, study_name: str) -> int:
        """Same as Optuna's own."""
        return self._patiently(lambda: self._reads.get_study_id_from_name(study_name))

    def get_study_name_from_id(self, study_id: int) -> str:
        """Same as Optuna's own, but always read from the database: the study may be deleted."""
        return self._patiently(lambda: self._reader.get_study_name_from_id(study_id))

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """Same as Optuna's own."""
        return self._patiently(lambda: self._reads.get_study_directions(study_id))

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """Same as Optuna's own."""
        return self._patiently(lambda: self._reads.get_study_user_attrs(study_id))

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """Same as Optuna's own."""
        return self._patiently(lambda: self._reads.get_study_system_attrs(study_id))

    def get_all_studies(self) -> list[Any]:
        """Same as Optuna's own."""
        return self._patiently(self._reads.get_all_studies)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Same as Optuna's own. It is not repeated: a second attempt could make a second trial."""
        try:
            return self._database.create_new_trial(study_id, template_trial)
        except Exception:
            self.remove_session()
            raise

    def set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
    ) -> None:
        """Same as Optuna's own."""
        parameter = (param_name, param_value_internal, distribution)
        self._patiently(lambda: self._database.set_trial_param(trial_id, *parameter))

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """Same as Optuna's own, but succeeds if an earlier attempt has set the same state."""
        attempts = 0

        def once() -> bool:
            nonlocal attempts
            attempts += 1
            try:
                return self._database.set_trial_state_values(trial_id, state, values)
            except UpdateFinishedTrialError:
                if attempts > 1 and self._agrees(trial_id, state, values):
                    return True
                raise

        return self._patiently(once)

    def _agrees(self, trial_id: int, state: TrialState, values: Sequence[float] | None) -> bool:
        trial = self.get_trial(trial_id)
        return trial.state == state and trial.values == (None if values is None else list(values))

    def set_trial_intermediate_value(
        self, trial_id: int, step: int, intermediate_value: float
    ) -> None:
        """Same as Optuna's own."""
        reported = (step, intermediate_value)
        self._patiently(lambda: self._database.set_trial_intermediate_value(trial_id, *reported))

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Same as Optuna's own."""
        self._patiently(lambda: self._database.set_trial_user_attr(trial_id, key, value))

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Same as Optuna's own."""
        self._patiently(lambda: self._database.set_trial_system_attr(trial_id, key, value))

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Same as Optuna's own."""
        return self._patiently(lambda: self._reads.get_trial(trial_id))

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        """Same as Optuna's own."""
        return self._patiently(lambda: self._reads.get_all_trials(study_id, deepcopy, states))

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        """Same as Optuna's own."""
        place = (study_id, trial_number)
        return self._patiently(lambda: self._reads.get_trial_id_from_study_id_trial_number(*place))

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        """Same as Optuna's own."""
        return self._patiently(lambda: self._reads.get_best_trial(study_id))
