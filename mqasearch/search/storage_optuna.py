"""Optuna's storage for a database that many workers share and that may be away for a while.

What is added to ``RDBStorage``, which stays in charge of the tables, beside patience (see
:mod:`mqasearch.search.storage_patient`):

Lost answers
    An operation whose commit arrived but whose answer did not is made again, and must then know
    its own work: a state already set to the same values is success, an enqueued trial is not
    enqueued twice, and whoever starts a trial knows it again by the moment it noted as its start.

No running trial without a heartbeat
    Optuna never fails a trial whose worker died before its first heartbeat. Here the first one is
    written before, or in the same transaction as, the state.

A failed trial's mask is never out of sight
    A trial that fails through no fault of its mask (its worker died, or was told to stop) has its
    successor queued in the same transaction. Optuna does that in two steps, between which another
    worker finds the study one trial short.

No trial beyond the last
    Who makes a trial can say which one was the newest when it decided to, so that a decision that
    is out of date by then makes none.

Parameters at once
    Optuna commits each parameter by itself. Here they are kept until something else is asked of
    the storage, at the latest the next heartbeat, and are then written in one transaction. Optuna's
    own cache promises no more: what precedes a change of state is written before it.
"""

import logging
import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from datetime import UTC, datetime
from functools import partial
from typing import Any, cast

from optuna.distributions import (
    BaseDistribution,
    check_distribution_compatibility,
    distribution_to_json,
)
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from mqasearch.errors import DatabaseAwayError
from mqasearch.results import Patience
from mqasearch.results.clock import seconds_now, seconds_started
from mqasearch.results.insert import insert_if_absent
from mqasearch.results.reading import reading
from mqasearch.search.storage_patient import PatientStorage, patiently
from mqasearch.search.storage_stale import successor_of

logger = logging.getLogger(__name__)

Parameters = dict[str, tuple[float, BaseDistribution]]
"""Name → Optuna's internal value (for a categorical parameter the index of the choice)."""


class TrialTaken(Exception):
    """A trial was not made, because somebody else has made one in the meantime."""


class SharedStorage(PatientStorage):
    """See the module.

    Args:
        url: as Optuna takes it.
        patience: how long to wait for a database that is away.
        settings: further keyword arguments of ``RDBStorage``.
    """

    def __init__(self, url: str, patience: Patience, **settings: Any) -> None:
        self._start_sharing()
        super().__init__(url, patience, **settings)

    def _start_sharing(self) -> None:
        self._running: set[int] = set()
        """Trials that this process runs."""
        self._fresh: set[int] = set()
        """Those of them whose first heartbeat was written as they were started."""
        self._asked: dict[int, float] = {}
        """Study → when this process last looked for stale trials, on its monotonic clock."""
        self._pending: dict[int, Parameters] = {}
        self._lock = threading.Lock()
        self._flushing = threading.RLock()
        self._only = threading.local()
        """What ``nothing_after`` was told in this thread: study → newest trial."""

    def __getstate__(self) -> dict[Any, Any]:
        self.flush()
        state = super().__getstate__()
        for name in ("_running", "_fresh", "_asked", "_pending", "_lock", "_flushing", "_only"):
            del state[name]
        return state

    def __setstate__(self, state: dict[Any, Any]) -> None:
        self._start_sharing()
        super().__setstate__(state)

    def record_heartbeat(self, trial_id: int) -> None:
        """As Optuna's, from a thread of its own. Whatever is kept back goes with it."""
        if trial_id in self._fresh:
            self._fresh.discard(trial_id)
            return
        try:
            self.flush()
            self.patience(lambda: RDBStorage.record_heartbeat(self, trial_id))
        except DatabaseAwayError:  # the trial's own thread meets it too; the next beat tries again
            logger.debug("no heartbeat of trial %d: the database is away", trial_id)

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        """Optuna asks before every trial; once in a while is enough.

        None for a while after the server started: nobody could be heard before.
        """
        assert self.heartbeat_interval is not None
        now = time.monotonic()
        if now - self._asked.get(study_id, -math.inf) < self.heartbeat_interval / 3:
            return []
        self._asked[study_id] = now

        def once() -> list[int]:
            with reading():
                stale = RDBStorage._get_stale_trial_ids(self, study_id)
                return [] if stale and self._just_started() else stale

        return self.patience(once)

    def _just_started(self) -> bool:
        uptime = seconds_now() - seconds_started()
        with self.engine.connect() as connection:
            return connection.execute(select(uptime)).scalar_one() < (self.grace_period or 0)

    def flush(self) -> None:
        """Write the parameters that are kept back."""
        # Whoever finds the heartbeat's thread at it waits, lest the trial's end be written before.
        with self._flushing:
            with self._lock:
                pending = {trial_id: dict(some) for trial_id, some in self._pending.items()}
            for trial_id, parameters in pending.items():
                try:
                    self.patience(partial(self._insert, trial_id, _rows(trial_id, parameters)))
                except DatabaseAwayError:
                    raise  # what is kept back stays so
                except Exception:
                    self._drop(trial_id, parameters)
                    raise
                self._drop(trial_id, parameters)

    def _drop(self, trial_id: int, parameters: Parameters) -> None:
        with self._lock:
            left = self._pending[trial_id]
            for name in parameters:
                del left[name]
            if not left:
                del self._pending[trial_id]

    def _insert(self, trial_id: int, rows: list[dict[str, Any]]) -> None:
        with _create_scoped_session(self.scoped_session) as session:
            trial = models.TrialModel.find_or_raise_by_id(trial_id, session)
            if not trial.state.is_finished():  # else it was failed as stale; telling it will fail
                insert_if_absent(session.connection(), models.TrialParamModel.__table__, rows)

    def _set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
        previous_distribution: BaseDistribution | None,
    ) -> None:
        """Kept back for a trial of ours, when there is nothing that only the database can check."""
        if trial_id not in self._running or previous_distribution is None:
            args = (trial_id, param_name, param_value_internal, distribution)
            return patiently(RDBStorage._set_trial_param)(self, *args, previous_distribution)
        check_distribution_compatibility(previous_distribution, distribution)
        with self._lock:
            parameters = self._pending.setdefault(trial_id, {})
            parameters.setdefault(param_name, (param_value_internal, distribution))

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """As Optuna's. An earlier attempt whose answer was lost counts as success."""
        self.flush()
        if state == TrialState.RUNNING:
            return self.patience(partial(self._start, trial_id, _moment()))
        attempts = 0

        def once() -> bool:
            nonlocal attempts
            attempts += 1
            try:
                if state == TrialState.FAIL:
                    return self._fail(trial_id)
                return RDBStorage.set_trial_state_values(self, trial_id, state, values)
            except UpdateFinishedTrialError:
                if attempts > 1 and self._agrees(trial_id, state, values):
                    return True
                raise

        self._running.discard(trial_id)
        self._fresh.discard(trial_id)
        return self.patience(once)

    def _agrees(self, trial_id: int, state: TrialState, values: Sequence[float] | None) -> bool:
        trial = self.get_trial(trial_id)
        return trial.state == state and trial.values == (None if values is None else list(values))

    def _fail(self, trial_id: int) -> bool:
        """Fail a trial and queue its successor, if it is to have one."""
        with _create_scoped_session(self.scoped_session) as session:
            # Not the trial itself: the session would not look again after waiting for the lock.
            query = select(models.TrialModel.study_id).where(models.TrialModel.trial_id == trial_id)
            study_id = session.execute(query).scalar_one_or_none()
            if study_id is None:
                raise KeyError(models.NOT_FOUND_MSG)
            # In the order in which whoever makes a trial locks.
            models.StudyModel.find_or_raise_by_id(study_id, session, for_update=True)
            trial: Any = models.TrialModel.find_or_raise_by_id(trial_id, session, for_update=True)
            self.check_trial_is_updatable(trial_id, trial.state)
            successor = successor_of(self._build_frozen_trial_from_trial_model(trial))
            trial.state = TrialState.FAIL
            trial.datetime_complete = datetime.now()
            if successor is not None:
                self._get_prepared_new_trial(study_id, successor, session)
        return True

    def _start(self, trial_id: int, moment: datetime) -> bool:
        """Whether the waiting trial is ours from now on."""
        with _create_scoped_session(self.scoped_session) as session:
            trial: Any = models.TrialModel.find_or_raise_by_id(trial_id, session, for_update=True)
            self.check_trial_is_updatable(trial_id, trial.state)
            if trial.state == TrialState.WAITING:
                trial.state = TrialState.RUNNING
                trial._datetime_start_utc = moment
                session.add(models.TrialHeartbeatModel(trial_id=trial_id))
            elif trial._datetime_start_utc != moment:
                return False
        self._running.add(trial_id)
        self._fresh.add(trial_id)
        return True

    def _create_new_trial(
        self, study_id: int, template_trial: FrozenTrial | None = None
    ) -> FrozenTrial:
        """As Optuna's, which would retry by itself without looking for its own work."""
        self.flush()
        moment = _moment()
        newest = -1 if template_trial is None else self.patience(self._newest_trial_id)
        attempts = 0

        def once() -> FrozenTrial:
            nonlocal attempts
            attempts += 1
            with _create_scoped_session(self.scoped_session) as session:
                models.StudyModel.find_or_raise_by_id(study_id, session, for_update=True)
                trial = None
                if attempts > 1 and template_trial is None:
                    trial = self._find_started(session, study_id, moment)
                elif attempts > 1:
                    trial = self._find_like(session, study_id, template_trial, newest)
                if trial is None:
                    if template_trial is None:
                        self._check_newest(session, study_id)
                    trial = self._get_prepared_new_trial(study_id, template_trial, session)
                    if template_trial is None:
                        trial._datetime_start_utc = moment
                return _frozen(trial, template_trial)

        frozen = self.patience(once)
        if frozen.state == TrialState.RUNNING:
            self._running.add(frozen._trial_id)
            self._fresh.add(frozen._trial_id)
        return frozen

    @contextmanager
    def nothing_after(self, study_id: int, newest: int | None) -> Iterator[None]:
        """Within the block this thread makes no trial in a study that has one after ``newest``.

        Trials are made one by one while the study's row is locked, so nobody can have made one
        since then. None: this thread makes no trial at all.

        Raises:
            TrialTaken: from whatever would make one.
        """
        self._only.newest = {study_id: newest}
        try:
            yield
        finally:
            self._only.newest = {}

    def _check_newest(self, session: Session, study_id: int) -> None:
        told = getattr(self._only, "newest", {})
        if study_id not in told:
            return
        newest = told[study_id]
        query = select(func.max(models.TrialModel.trial_id)).where(
            models.TrialModel.study_id == study_id
        )
        if newest is None or (session.execute(query).scalar_one() or -1) > newest:
            raise TrialTaken  # which rolls back

    def _get_prepared_new_trial(
        self, study_id: int, template_trial: FrozenTrial | None, session: Session
    ) -> "models.TrialModel":
        trial = super()._get_prepared_new_trial(study_id, template_trial, session)
        if trial.state == TrialState.RUNNING:
            session.add(models.TrialHeartbeatModel(trial_id=trial.trial_id))
        return trial

    def _newest_trial_id(self) -> int:
        with reading(), self.engine.connect() as connection:
            newest = connection.execute(select(func.max(models.TrialModel.trial_id))).scalar_one()
            return -1 if newest is None else cast(int, newest)

    @staticmethod
    def _find_started(session: Session, study_id: int, moment: datetime) -> Any:
        query = select(models.TrialModel).where(
            models.TrialModel.study_id == study_id,
            models.TrialModel._datetime_start_utc == moment,
        )
        return session.execute(query).scalars().first()

    def _find_like(
        self, session: Session, study_id: int, template: FrozenTrial | None, newest: int
    ) -> Any:
        """A trial newer than ``newest`` that was made from the template, whatever it is by now."""
        assert template is not None
        query = select(models.TrialModel).where(
            models.TrialModel.study_id == study_id, models.TrialModel.trial_id > newest
        )
        for trial in session.execute(query).scalars():
            made = self._build_frozen_trial_from_trial_model(trial)
            if (
                _contains(made.params, template.params)
                and _contains(made.system_attrs, template.system_attrs)
                and _contains(made.user_attrs, template.user_attrs)
            ):
                return trial
        return None


def _rows(trial_id: int, parameters: Parameters) -> list[dict[str, Any]]:
    return [
        {
            "trial_id": trial_id,
            "param_name": name,
            "param_value": value,
            "distribution_json": distribution_to_json(distribution),
        }
        for name, (value, distribution) in parameters.items()
    ]


def _moment() -> datetime:
    """Now, in UTC, to the microsecond: nobody else's moment, as far as a lost answer goes."""
    return datetime.now(UTC).replace(tzinfo=None)


def _contains(attributes: dict[str, Any], some: dict[str, Any]) -> bool:
    return all(name in attributes and attributes[name] == value for name, value in some.items())


def _frozen(trial: Any, template: FrozenTrial | None) -> FrozenTrial:
    """What was just made, without reading it back."""
    if template is None:
        return FrozenTrial(
            number=trial.number,
            state=trial.state,
            value=None,
            values=None,
            datetime_start=trial.datetime_start,
            datetime_complete=None,
            params={},
            distributions={},
            user_attrs={},
            system_attrs={},
            intermediate_values={},
            trial_id=trial.trial_id,
        )
    frozen = deepcopy(template)
    frozen.number = trial.number
    frozen.datetime_start = trial.datetime_start
    frozen._trial_id = trial.trial_id
    return frozen
