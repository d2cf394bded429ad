"""A mask is proposed by one trial of a study, however many workers ask at once."""

import json

from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.trial import TrialState
from sqlalchemy import exists, or_, select
from sqlalchemy.orm import Session, aliased

from mqasearch.search.storage_optuna import SharedStorage
from mqasearch.selectors import INVALID_KEY, MASK_KEY


def publish_mask(storage: SharedStorage, trial_id: int, mask: str, since: int) -> bool:
    """Write a trial's mask unless another trial has it.

    Only one worker at a time does this in a study.

    Args:
        storage: of the trial.
        trial_id: Optuna's number of the trial in the database.
        mask: the row of 0 and 1.
        since: number of the first trial that may have got its mask since the caller last looked.

    Returns:
        Whether the mask was written.
    """

    def once() -> bool:
        with _create_scoped_session(storage.scoped_session) as session:
            query = select(models.TrialModel.study_id).where(models.TrialModel.trial_id == trial_id)
            study_id = session.execute(query).scalar_one()
            models.StudyModel.find_or_raise_by_id(study_id, session, for_update=True)
            if _has_another(session, study_id, trial_id, mask, since):
                return False
            kind = models.TrialUserAttributeModel
            storage._set_trial_attr_without_commit(session, kind, trial_id, MASK_KEY, mask)
            return True

    storage.flush()
    return storage.patience(once)


def _has_another(session: Session, study_id: int, trial_id: int, mask: str, since: int) -> bool:
    trial, attribute = models.TrialModel, models.TrialUserAttributeModel
    mark = aliased(attribute)
    is_invalid = exists().where(mark.trial_id == trial.trial_id, mark.key == INVALID_KEY)
    other = (
        exists()
        .where(trial.study_id == study_id, trial.number >= since, trial.trial_id != trial_id)
        .where(or_(trial.state != TrialState.FAIL, is_invalid))
        .where(attribute.trial_id == trial.trial_id, attribute.key == MASK_KEY)
        .where(attribute.value_json == json.dumps(mask))
    )
    return bool(session.execute(select(other)).scalar_one())
