"""Confirms the best mask of each selector against the original model on held-out documents.

The search picks the mask that looks best on the search documents, so that its value there is biased
(winner's curse). The search never saw the confirmation documents. The difference is paired by
document.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mqasearch.errors import ScoreError, UserError
from mqasearch.evaluation import Evaluator, against
from mqasearch.forward import ran_out_of_memory
from mqasearch.mask import LayerMask
from mqasearch.record import (
    ENQUEUED,
    HEALED,
    NO_MASK,
    confirmation,
    set_confirmation,
    set_unconfirmed,
    unconfirmed,
)
from mqasearch.score import Score
from mqasearch.scoring import Healer
from mqasearch.study import Selection, best_trial

logger = logging.getLogger(__name__)

STATISTICS = 2
"""Version of the result that is written. It is raised when a field is added, so that older results
are computed again, from scores that are in the database."""


def confirm(
    selections: Sequence[Selection],
    evaluator: Evaluator,
    limit: int | None,
    on_confirm: Callable[[Selection], None] = lambda _: None,
    healer: Healer | None = None,
) -> None:
    """Score each selection's best mask on held-out documents and record it in the study.

    The result is recorded as task → metric → ``{value, stderr, n_docs, original, original_stderr,
    higher_is_better, delta}``. ``delta`` is as in ``PairedDifference``; only metrics with values
    per document and at least two documents have it. If a score is missing, the reason is recorded
    instead.

    Args:
        selections: studies whose search has ended.
        evaluator: scores masks and keeps scores; equal masks are scored once.
        limit: confirmation documents per task; None = all.
        on_confirm: called before a mask is scored.
        healer: if given, heals each mask afterwards, and the healed mask is scored on the same
            documents. ``healed`` then records ``facts``, ``tasks`` (the healed mask against the
            original) and ``gained`` (the healed mask against the mask before healing).
    """
    original: Mapping[str, Score] | str | None = None
    finalists: list[_Finalist] = []
    for selection in selections:
        if selection.facts.selector == ENQUEUED:
            continue  # masks that were enqueued by name were not chosen by a search
        best = best_trial(selection.study)
        if best is None:
            _note_no_mask(selection)
            continue
        plain = {
            "trial_number": best.number,
            "mask": best.facts.mask,
            "limit": limit,
            "statistics": STATISTICS,
        }
        wanted = plain if healer is None else {**plain, "heal": healer.how}
        attributes = selection.study.user_attrs
        failed = unconfirmed(attributes)
        if _says(confirmation(attributes), wanted) or _says(failed, {**wanted, "again": None}):
            continue
        on_confirm(selection)
        mask = LayerMask.parse(best.facts.mask)
        original = original or _scores(evaluator, LayerMask.empty(len(mask)), limit)
        converted = original if isinstance(original, str) else _scores(evaluator, mask, limit)
        if isinstance(original, str) or isinstance(converted, str):
            whose = "the original model" if converted is original else "its best mask"
            set_unconfirmed(selection.study, {**wanted, "whose": whose, "fault": converted})
            continue
        if not _says(confirmation(attributes), plain):
            set_confirmation(selection.study, {**plain, "tasks": _rows(converted, original)})
        if healer is not None:
            finalists.append(_Finalist(selection, mask, wanted, original, converted))
    if healer is not None:
        _heal(finalists, evaluator, limit, healer)


def _note_no_mask(selection: Selection) -> None:
    """Record in the study that it ended without a mask at the budget, if that is so."""
    row = {"whose": NO_MASK, "fault": selection.fault_of_masks(), "trial_number": None}
    if row["fault"] is not None and unconfirmed(selection.study.user_attrs) != row:
        set_unconfirmed(selection.study, row)


@dataclass(frozen=True, slots=True)
class _Finalist:
    """A mask that is confirmed and not yet healed.

    Attributes:
        selection: the study whose best mask it is.
        mask: the mask.
        wanted: the entries of the confirmation that say what it is of.
        original, converted: task → held-out score of the original, and of the converted model.
    """

    selection: Selection
    mask: LayerMask
    wanted: Mapping[str, Any]
    original: Mapping[str, Score]
    converted: Mapping[str, Score]


def _heal(
    finalists: Sequence[_Finalist], evaluator: Evaluator, limit: int | None, healer: Healer
) -> None:
    """Heal and confirm each finalist; those that no other worker is healing come first."""
    left = list(finalists)
    while left:
        free = [each for each in left if not evaluator.is_healing(each.mask, limit, healer)]
        if not free:
            logger.info("waiting for other workers, which heal the masks that are left")
        finalist = (free or left)[0]
        left.remove(finalist)
        study = finalist.selection.study
        try:
            scores, facts = evaluator.confirm_healed(finalist.mask, limit, healer)
        except (ScoreError, UserError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not ran_out_of_memory(error):
                raise
            fault = " ".join(str(error).split())
            logger.warning("%s: its best mask is not healed: %s", study.study_name, fault)
            # On a device with more memory it may succeed.
            again = {} if isinstance(error, ScoreError) else {"again": True}
            row = {**finalist.wanted, "whose": HEALED, "fault": fault, **again}
            set_unconfirmed(study, row)
            continue
        healed = {
            "facts": dict(facts),
            "tasks": _rows(scores, finalist.original),
            "gained": _rows(scores, finalist.converted),
        }
        tasks = _rows(finalist.converted, finalist.original)
        set_confirmation(study, {**finalist.wanted, "tasks": tasks, "healed": healed})


def _rows(scores: Mapping[str, Score], others: Mapping[str, Score]) -> dict[str, Any]:
    return {task: against(task, score, others[task]) for task, score in scores.items()}


def _says(row: Mapping[str, Any] | None, wanted: Mapping[str, Any]) -> bool:
    return row is not None and {key: row.get(key) for key in wanted} == wanted


def _scores(evaluator: Evaluator, mask: LayerMask, limit: int | None) -> Mapping[str, Score] | str:
    """Task → held-out score; if there is none, a string that says why."""
    try:
        return evaluator.confirm(mask, limit).scores
    except ScoreError as error:
        return str(error)
