"""One process of several that use a storage at once: ``storage_process.py create|take URL``."""

import json
import sys

import optuna
from optuna.trial import TrialState

from mqasearch.search.storage import Storage, open_storage

NAME = "study"


def create(storage: Storage) -> list[int]:
    optuna.create_study(study_name=NAME, storage=storage.optuna, load_if_exists=True)
    return []


def take(storage: Storage) -> list[int]:
    """Run trials while any waits; the numbers that this process got."""
    study = optuna.load_study(study_name=NAME, storage=storage.optuna)
    numbers = []
    while any(trial.state == TrialState.WAITING for trial in study.get_trials(deepcopy=False)):
        trial = study.ask()
        numbers.append(trial.number)
        study.tell(trial, 0.0)
    return numbers


if __name__ == "__main__":
    action, url = sys.argv[1:]
    opened = open_storage(url)
    print(json.dumps({"create": create, "take": take}[action](opened)))
    opened.close()
