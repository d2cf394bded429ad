"""One process of several that open a storage at once: ``storage_process.py URL``."""

import sys

import optuna

from mqasearch.record.storage import open_storage

NAME = "study"

if __name__ == "__main__":
    opened = open_storage(sys.argv[1])
    optuna.create_study(study_name=NAME, storage=opened.optuna, load_if_exists=True)
    opened.close()
