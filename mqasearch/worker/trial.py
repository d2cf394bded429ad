"""One trial: scores the mask of a task and returns the result."""

from collections.abc import Sequence
from dataclasses import asdict

from mqasearch.errors import ScoreError
from mqasearch.evaluation import Evaluation, Evaluator, stderrs
from mqasearch.mask import LayerMask
from mqasearch.queue import Result, Task
from mqasearch.record import TrialFacts
from mqasearch.search_space import SearchSpace
from mqasearch.statistics import Estimate
from mqasearch.study import Selection, best


def score_task(selection: Selection, evaluator: Evaluator, task: Task) -> Result:
    """Score the mask of a task.

    A mask that is not at the budget is a probe: it ends ``pruned``, so that the study's best trial
    is always a mask at the budget. A mask that was given up in a race against the best mask of its
    size ends ``pruned`` too. A mask that cannot be scored ends ``invalid``.
    """
    mask = LayerMask.parse(task.mask)
    try:
        rival = _rival(selection, evaluator, task)
        if rival is None:
            evaluation = evaluator.evaluate(mask, _certain(selection, evaluator))
        else:
            evaluation = evaluator.race(mask, rival)
        delta = evaluator.against_original(evaluation)
    except ScoreError as error:
        return Result("invalid", fault=str(error))
    is_probe = not selection.space.is_at_budget(mask)
    return Result(
        state="pruned" if is_probe or evaluation.given_up is not None else "complete",
        value=evaluation.value,
        given_up=evaluation.given_up,
        facts=asdict(_facts(evaluator, task, evaluation, delta)),
    )


def _certain(selection: Selection, evaluator: Evaluator) -> Sequence[LayerMask]:
    """Masks that may be scored together with the task's mask; empty if that does not cost less."""
    return selection.certain() if evaluator.scorer.gains_from_many() else ()


def _rival(selection: Selection, evaluator: Evaluator, task: Task) -> LayerMask | None:
    """The mask to race against; None if the task's mask is to be scored in full."""
    if evaluator.rule is None or task.name is not None:
        return None
    size = selection.space.size(LayerMask.parse(task.mask))
    return incumbent(selection.tasks(), selection.space, size, maximize=evaluator.maximize)


def incumbent(
    tasks: Sequence[Task], space: SearchSpace, size: int, *, maximize: bool
) -> LayerMask | None:
    """The best mask of a size (``space.size``) that was scored in full; None if there is none.

    If several are equal, it is the earliest one.
    """
    scored = [
        task for task in tasks if task.is_scored and space.size(LayerMask.parse(task.mask)) == size
    ]
    found = best(scored, maximize=maximize)
    return None if found is None else LayerMask.parse(found.mask)


def _facts(evaluator: Evaluator, task: Task, evaluation: Evaluation, delta: Estimate) -> TrialFacts:
    shape = evaluator.scorer.shape
    kv_heads = LayerMask.parse(task.mask).kv_heads(shape, evaluator.numbers)
    return TrialFacts(
        mask=task.mask,
        n_converted=task.n_converted,
        kv_bytes_per_token=shape.kv_bytes_per_token(kv_heads),
        value=evaluation.value,
        delta=delta.value,
        seconds=evaluation.seconds,
        reused=evaluation.reused,
        scores={name: dict(score.values) for name, score in evaluation.scores.items()},
        name=task.name,
        given_up=evaluation.given_up,
        stderr=evaluation.stderr,
        delta_stderr=delta.stderr,
        stderrs={name: stderrs(score) for name, score in evaluation.scores.items()},
        n_docs={name: score.n_docs for name, score in evaluation.scores.items()},
    )
