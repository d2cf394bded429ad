"""Why a study ends before its plan does: a function of its trials, so that all workers agree."""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile

from optuna.trial import FrozenTrial, TrialState

from mqasearch.search.attributes import ENQUEUED, StudyFacts
from mqasearch.search.held_out import parts_of
from mqasearch.search.out_of_memory import lacks_memory
from mqasearch.selectors import INVALID_KEY, mask_of

LEAST_IN_A_ROW = 10
_TWO_BYTES = ("bfloat16", "float16")


def fault_of_original(facts: StudyFacts, trials: Sequence[FrozenTrial]) -> str | None:
    """Why the original model cannot be scored; None if it can, or nobody has tried."""
    if any(map(_is_scored, trials)):  # compared with the original, which hence has a score
        return None
    return next((trial.user_attrs[INVALID_KEY] for trial in _of_original(facts, trials)), None)


def fault_of_masks(facts: StudyFacts, trials: Sequence[FrozenTrial]) -> str | None:
    """Why the latest mask cannot be scored, if too many before it cannot either; else None.

    Masks that were enqueued by name are each wanted for itself: one says nothing about the next.
    """
    if facts.selector == ENQUEUED:
        return None
    row = _latest_invalid(trials)
    return row[0].user_attrs[INVALID_KEY] if len(row) >= _most_in_a_row(facts) else None


def fault_of_all(facts: StudyFacts, trials: Sequence[FrozenTrial]) -> str | None:
    """Why the latest mask cannot be scored, if none that was wanted can; else None.

    Wanted are masks at the budget, not layers alone; of those enqueued by name, all but the
    original.
    """
    least = 1 if facts.selector == ENQUEUED else facts.n_converted
    if any(_is_scored(trial) and _mask(facts, trial).count("1") >= least for trial in trials):
        return None
    return next((t.user_attrs[INVALID_KEY] for t in reversed(trials) if _is_invalid(t)), None)


def why_original(facts: StudyFacts, fault: str, dtype: str | None) -> str:
    """One line on a study whose original cannot be scored; ``dtype``: of its workers."""
    metrics = ", ".join(f"{part.metric} of {part.task}" for part in parts_of(facts.spec))
    return (
        f"study {facts.study!r}: the original model cannot be scored by {metrics} "
        f"({_one_line(fault)}), so that there is nothing to compare masks with; "
        f"{remedy(fault, dtype, 'another dtype or other tasks')}"
    )


def why_masks(names: Sequence[str], fault: str, dtype: str | None) -> str:
    """One line on studies whose masks cannot be scored; ``dtype``: of their workers."""
    noun = "study" if len(names) == 1 else "studies"
    return (
        f"{noun} {', '.join(map(repr, names))} ended early: one mask after the other cannot be "
        f"scored (the last one: {_one_line(fault)}); "
        f"{remedy(fault, dtype, 'another dtype, merge or tasks')}"
    )


def remedy(fault: str, dtype: str | None, otherwise: str) -> str:
    """What to do; ``otherwise``: where memory is not what is missing."""
    if not lacks_memory(fault):
        return f"give {otherwise}, and another name, in the study file"
    smaller = "" if dtype in _TWO_BYTES else "dtype bfloat16, "
    return (  # batches were made as small as they can be before a trial failed
        "use a device with more memory, or fewer workers on it, or give "
        f"{smaller}a lower num_fewshot or tasks with shorter texts; in each case give another "
        "name, in the study file"
    )


def _most_in_a_row(facts: StudyFacts) -> int:
    """More masks than cannot be scored in a row because one layer, or each alone, is at fault.

    One that diverges when converted spoils every mask that converts it. Selectors that begin with
    single layers meet n_layers masks before the first pair; some layers may well be fine, and if
    none is, no larger mask will be. ``exhaustive`` goes by layer: first all masks with layer 0.
    """
    most = max(LEAST_IN_A_ROW, facts.n_layers + 1)
    if facts.selector == "exhaustive":
        most = max(most, math.comb(facts.n_layers - 1, facts.n_converted - 1) + 1)
    return most


def _latest_invalid(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The latest trials up to one that was scored, the newest first.

    Those that run, wait or were lost with their worker are no evidence.
    """
    ended = (trial for trial in reversed(trials) if _is_scored(trial) or _is_invalid(trial))
    return list(takewhile(_is_invalid, ended))


def _of_original(facts: StudyFacts, trials: Iterable[FrozenTrial]) -> Iterator[FrozenTrial]:
    empty = "0" * facts.n_layers
    return (trial for trial in trials if _is_invalid(trial) and _mask(facts, trial) == empty)


def _mask(facts: StudyFacts, trial: FrozenTrial) -> str:
    return str(mask_of(trial, facts.n_layers))


def _is_scored(trial: FrozenTrial) -> bool:
    return trial.state in (TrialState.COMPLETE, TrialState.PRUNED)


def _is_invalid(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.FAIL and INVALID_KEY in trial.user_attrs


def _one_line(text: str) -> str:
    return " ".join(text.split())
