"""The cache of trials says what Optuna's own says."""

import random
from pathlib import Path

import optuna
import pytest
from optuna.storages._cached_storage import _CachedStorage
from optuna.trial import TrialState

from mqasearch.search.storage import open_storage
from mqasearch.search.storage_cached import TrialCache

pytestmark = pytest.mark.filterwarnings("ignore:Heartbeat of storage:UserWarning")

STATES = [
    None,
    (TrialState.WAITING,),
    (TrialState.RUNNING, TrialState.WAITING),
    (TrialState.FAIL,),
    (TrialState.COMPLETE, TrialState.RUNNING),
]


@pytest.mark.parametrize("seed", range(5))
def test_it_agrees_with_optunas_cache_whoever_writes(tmp_path: Path, seed: int) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/study.db")
    caches = [TrialCache(storage.optuna), TrialCache(storage.optuna)]
    workers = [optuna.create_study(storage=caches[0], study_name="s")]
    workers.append(optuna.load_study(storage=caches[1], study_name="s"))
    reference = _CachedStorage(storage.optuna)
    running: list[tuple[optuna.Study, optuna.Trial]] = []
    moves = random.Random(seed)
    for _ in range(80):
        worker = moves.choice(workers)
        move = moves.choice(["ask", "ask", "tell", "tell", "enqueue", "look"])
        if move == "ask":
            running.append((worker, worker.ask()))
        elif move == "enqueue":
            worker.enqueue_trial({"x": 1})
        elif move == "tell" and running:
            owner, trial = running.pop(moves.randrange(len(running)))
            state = moves.choice([TrialState.COMPLETE, TrialState.FAIL])
            owner.tell(trial, 1.0 if state == TrialState.COMPLETE else None, state)
        else:
            states = moves.choice(STATES)
            found = worker.get_trials(deepcopy=False, states=states)
            assert found == reference.get_all_trials(worker._study_id, states=states)
    for cache in caches:
        study_id = workers[0]._study_id
        assert cache.get_all_trials(study_id) == reference.get_all_trials(study_id)
    storage.close()
