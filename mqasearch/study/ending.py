"""Why a study ends early. It is a function of the study's tasks, so that all workers agree."""

from collections.abc import Sequence
from itertools import takewhile

from mqasearch.mask import LayerMask
from mqasearch.queue import Task
from mqasearch.record import ENQUEUED, StudyFacts
from mqasearch.study.held_out_values import parts_of
from mqasearch.study.out_of_memory import lacks_memory

_TWO_BYTES = ("bfloat16", "float16")


def fault_of_original(tasks: Sequence[Task]) -> str | None:
    """Why the original model cannot be scored; None if it can, or no worker has tried."""
    if any(task.is_scored for task in tasks):  # a mask is scored only if the original has a score
        return None
    of_original = (task for task in tasks if task.n_converted == 0)
    return next((task.fault for task in of_original if task.state == "invalid"), None)


def fault_of_masks(tasks: Sequence[Task], most_in_a_row: int) -> str | None:
    """Why the latest mask cannot be scored, if too many in a row cannot be scored; else None.

    Args:
        tasks: the tasks of a study.
        most_in_a_row: number of invalid masks in a row with which the study ends.
    """
    row = _latest_invalid(tasks)
    return row[0].fault if len(row) >= most_in_a_row else None


def fault_of_all(facts: StudyFacts, tasks: Sequence[Task]) -> str | None:
    """Why the latest invalid mask cannot be scored, if no wanted mask has a score; else None.

    Masks at the budget are wanted, smaller probes are not. In a study of masks that were enqueued
    by name, all masks but the original are wanted.
    """
    space = facts.space
    least = 1 if facts.selector == ENQUEUED else facts.least
    if any(task.is_scored and space.size(LayerMask.parse(task.mask)) >= least for task in tasks):
        return None
    return next((task.fault for task in reversed(tasks) if task.state == "invalid"), None)


def why_original(facts: StudyFacts, fault: str, dtype: str | None) -> str:
    """One line on a study whose original cannot be scored; ``dtype`` is that of its workers."""
    metrics = ", ".join(f"{part.metric} of {part.task}" for part in parts_of(facts.spec))
    return (
        f"study {facts.study!r}: the original model cannot be scored by {metrics} "
        f"({_one_line(fault)}), so that there is nothing to compare masks with; "
        f"{remedy(fault, dtype, 'another dtype or other tasks')}"
    )


def why_masks(names: Sequence[str], fault: str, dtype: str | None) -> str:
    """One line on studies whose masks cannot be scored; ``dtype`` is that of their workers."""
    noun = "study" if len(names) == 1 else "studies"
    return (
        f"{noun} {', '.join(map(repr, names))} ended early: one mask after the other cannot be "
        f"scored (the last one: {_one_line(fault)}); "
        f"{remedy(fault, dtype, 'another dtype, merge or tasks')}"
    )


def remedy(fault: str, dtype: str | None, otherwise: str) -> str:
    """What to do about a fault; ``otherwise`` is what to change if it is not a lack of memory."""
    if not lacks_memory(fault):
        return f"give {otherwise}, and another name, in the study file"
    smaller = "" if dtype in _TWO_BYTES else "dtype bfloat16, "
    return (  # before a trial failed, batches were made as small as possible
        "use a device with more memory, or fewer workers on it, or give "
        f"{smaller}a lower num_fewshot or tasks with shorter texts; in each case give another "
        "name, in the study file"
    )


def _latest_invalid(tasks: Sequence[Task]) -> list[Task]:
    """The invalid tasks since the last one that was scored, the newest first.

    Unfinished tasks are left out, because they are no evidence.
    """
    ended = (task for task in reversed(tasks) if task.is_finished)
    return list(takewhile(lambda task: task.state == "invalid", ended))


def _one_line(text: str) -> str:
    return " ".join(text.split())
