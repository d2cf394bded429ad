"""Workers that decide at the same moment get different masks, however late they write them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from studies_on_fake import spec_of

from mqasearch.evaluation.fake import FakeScorer
from mqasearch.search.create import create_studies
from mqasearch.search.objective import suggest_mask
from mqasearch.search.selection import Selection, find_studies, open_selections
from mqasearch.search.storage import Storage, open_storage
from mqasearch.selectors import INVALID_KEY, MASK_KEY

pytestmark = pytest.mark.filterwarnings("ignore:Heartbeat of storage:UserWarning")

N_LAYERS = 6


@pytest.fixture(params=["sqlite", "postgresql"])
def storages(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[Storage]]:
    """Two workers' connections to one study."""
    url = f"sqlite:///{tmp_path}/study.db"
    if request.param == "postgresql":
        url = str(request.getfixturevalue("postgres_url"))
    opened = [open_storage(url) for _ in range(2)]
    spec = spec_of(model=f"fake:{N_LAYERS}", selectors=["sensitivity"])
    create_studies(opened[0].optuna, spec, FakeScorer(N_LAYERS).shape)
    yield opened
    for storage in opened:
        storage.close()


def selection_in(storage: Storage) -> Selection:
    (only,) = open_selections(storage.optuna, find_studies(storage.optuna, "s"))
    return only


@pytest.mark.parametrize("slow_is_older", [True, False])
def test_a_mask_that_was_taken_between_the_look_and_the_writing_is_not_written(
    storages: list[Storage], slow_is_older: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, quick = (selection_in(storage).study for storage in storages)
    quick.ask()  # the original model's, enqueued
    older, newer = (slow, quick) if slow_is_older else (quick, slow)
    trials = {older: older.ask(), newer: newer.ask()}
    chosen = slow.sampler.chosen  # type: ignore[attr-defined]
    overtaken: list[str] = []

    def overtaken_once(*arguments: Any) -> Any:
        mask = chosen(*arguments)
        if not overtaken:
            overtaken.append(str(suggest_mask(trials[quick], N_LAYERS)))
            assert overtaken == [str(mask)]  # both want the same
        return mask

    monkeypatch.setattr(slow.sampler, "chosen", overtaken_once)
    late = str(suggest_mask(trials[slow], N_LAYERS))
    assert late != overtaken[0]
    assert masks_of(slow) == {trials[quick].number: overtaken[0], trials[slow].number: late}


def masks_of(study: optuna.Study) -> dict[int, str]:
    """Of all trials but the first one."""
    return {trial.number: trial.user_attrs[MASK_KEY] for trial in study.get_trials()[1:]}


@pytest.mark.parametrize("is_at_fault", [True, False])
def test_the_mask_of_a_failed_trial_is_its_successors_or_nobodys(
    storages: list[Storage], is_at_fault: bool
) -> None:
    study = selection_in(storages[0]).study
    register: Any = study._storage
    failed, trial = (study.ask(), study.ask())[1], study.ask()
    register.publish_mask(failed._trial_id, "100000", 0)
    if is_at_fault:
        failed.set_user_attr(INVALID_KEY, "not a number")
    study.tell(failed, state=TrialState.FAIL)
    waiting = study.get_trials(states=(TrialState.WAITING,))
    assert bool(waiting) is not is_at_fault
    assert not register.publish_mask(trial._trial_id, "100000", 0)


def test_a_lost_answer_is_no_reason_to_propose_again(storages: list[Storage]) -> None:
    """The mask is written again by the trial that has it."""
    register: Any = selection_in(storages[0]).study._storage
    study = selection_in(storages[0]).study
    study.ask()
    trial = study.ask()
    assert register.publish_mask(trial._trial_id, "100000", 0)
    assert register.publish_mask(trial._trial_id, "100000", 0)
