"""The worker: it opens studies, scores masks until none is left, and confirms the best ones."""

from mqasearch.worker.run import (
    NO_LIMITS,
    Limits,
    Watcher,
    add_trials,
    create,
    sized,
    work,
    work_with,
)

__all__ = ["NO_LIMITS", "Limits", "Watcher", "add_trials", "create", "sized", "work", "work_with"]
