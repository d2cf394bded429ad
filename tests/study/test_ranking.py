"""Whoever asks which mask is the best gets the same answer, and never one that was given up."""

import itertools
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from typing import Any

import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import TrialState, create_trial
from studies_on_fake import spec_of, storage_in

from mqasearch.cli.progress import Progress
from mqasearch.creation import create_studies
from mqasearch.dashboard.data import StudyRows
from mqasearch.dashboard.figures import budget_front, selectors_by_evaluations
from mqasearch.dashboard.heatmap import masks_by_trial
from mqasearch.dashboard.pages import comparison_page
from mqasearch.dashboard.study_reading import read_comparisons
from mqasearch.export import export
from mqasearch.mask import LayerMask, ModelShape
from mqasearch.queue import Queue, Task, TaskState
from mqasearch.record import (
    FACTS_KEY,
    TASK_KEY,
    StudyFacts,
    TrialFacts,
    set_study_facts,
    study_facts,
)
from mqasearch.search_space import SearchSpace
from mqasearch.selectors import MASK_KEY, selector_of
from mqasearch.study.comparison_rows import FinishedTrial, best_trial, compare, finished
from mqasearch.study.ranking import best, front, improvements, ranked
from mqasearch.study.selection import Selection, find_studies
from mqasearch.study.status import STATUS_HEADERS, study_row
from mqasearch.worker.trial import incumbent

N_LAYERS, BUDGET = 4, 2
SHAPE = ModelShape(N_LAYERS, 8, 4, 16, 128, 2)
MASKS = [LayerMask(levels) for levels in itertools.product((0, 1), repeat=N_LAYERS)]
VALUES = st.integers(-3, 3).map(float)
"""Few, so that many masks are equal."""

TRIALS = st.lists(
    st.tuples(
        st.sampled_from(MASKS),
        st.one_of(st.none(), VALUES),  # the estimate of a mask that was given up
        st.sampled_from(["ended", "ended", "ended", "failed", "running"]),
    ),
    max_size=12,
)
"""Of one selector."""


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(level)


def trial_of(mask: LayerMask, value: float, given_up: int | None, fate: str) -> Any:
    """A trial as the objective leaves it, or as a worker that died after its score was known."""
    at_budget = mask.n_converted == BUDGET and given_up is None
    ended = TrialState.COMPLETE if at_budget else TrialState.PRUNED
    state = {"ended": ended, "failed": TrialState.FAIL, "running": TrialState.RUNNING}[fate]
    facts = TrialFacts(
        mask=str(mask),
        n_converted=mask.n_converted,
        kv_bytes_per_token=SHAPE.kv_bytes_per_token(mask.kv_heads(SHAPE)),
        value=value,
        delta=value,
        seconds=1.0,
        reused=False,
        scores={"hellaswag": {"bits_per_byte": value, "acc": value}},
        given_up=given_up,
    )
    return create_trial(
        state=state,
        value=value if state == TrialState.COMPLETE else None,
        intermediate_values={mask.n_converted: value} if state == TrialState.PRUNED else {},
        user_attrs={MASK_KEY: str(mask), FACTS_KEY: asdict(facts)},
    )


METRICS = ("bits_per_byte", "acc")


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[StudyFacts]]:
    """Metric → what is known of one study per selector."""
    found = {}
    for metric in METRICS:
        folder = tmp_path_factory.mktemp(metric)
        with closing(storage_in(folder)) as storage:
            selectors = [{"name": name, "n_trials": 20} for name in ("random", "tpe")]
            tasks = [{"name": "hellaswag", "metric": metric}]
            spec = spec_of(selectors=selectors, budget=BUDGET, tasks=tasks)
            create_studies(storage.optuna, spec, SHAPE)
            found[metric] = [*find_studies(storage.optuna, "s").values()]
    return found


class GivenTasks(Queue):
    """The queue that a record was made from, without a database."""

    def __init__(self, study: optuna.Study) -> None:
        self.trials = study.get_trials(deepcopy=False)

    def tasks(self, study_id: int) -> list[Task]:
        states: dict[TrialState, TaskState] = {
            TrialState.COMPLETE: "complete",
            TrialState.PRUNED: "pruned",
            TrialState.FAIL: "invalid",
            TrialState.RUNNING: "leased",
        }
        return [
            Task(
                trial.number,
                study_id,
                trial.number,
                trial.user_attrs[MASK_KEY],
                states[trial.state],
                value=trial.user_attrs[FACTS_KEY]["value"] if trial.state in ENDED else None,
                given_up=trial.user_attrs[FACTS_KEY]["given_up"],
            )
            for trial in self.trials
        ]

    def facts(self, task: Task) -> Any:
        return self.trials[task.number].user_attrs[FACTS_KEY]


ENDED = (TrialState.COMPLETE, TrialState.PRUNED)


def selection_of(study: optuna.Study) -> Selection:
    facts = study_facts(study.user_attrs)
    assert facts is not None
    selector = selector_of(facts.selector, SearchSpace(N_LAYERS, BUDGET))
    return Selection(facts, study, 0, selector, GivenTasks(study))


def history_of(
    known: Sequence[StudyFacts],
    truth: Sequence[float],
    trials: Sequence[Sequence[tuple[LayerMask, float | None, str]]],
) -> BaseStorage:
    """One study per selector; a mask that is scored in full has the same value in all of them."""
    storage = InMemoryStorage()
    for facts, rows in zip(known, trials, strict=True):
        study = optuna.create_study(
            study_name=facts.name, storage=storage, direction=facts.direction
        )
        set_study_facts(study, facts)
        for mask, estimate, fate in rows:
            value = truth[MASKS.index(mask)] if estimate is None else estimate
            study.add_trial(trial_of(mask, value, None if estimate is None else 50, fate))
    return storage


def studies_in(storage: BaseStorage) -> list[optuna.Study]:
    return [optuna.load_study(study_name=n, storage=storage) for n in find_studies(storage, "s")]


def optunas_best(study: optuna.Study) -> float | None:
    try:
        return study.best_value
    except ValueError:  # no trial is complete
        return None


def shown_by_dashboard(study: StudyRows) -> list[Any]:
    row = study.best
    heatmap = masks_by_trial(study).data[0]
    first = heatmap.x[0] if heatmap.x else None
    return [
        None if row is None else (row.number, row.value),
        study.improvements[-1].value if study.improvements else None,
        first,
    ]


def logged_by_progress(study: optuna.Study, caplog: pytest.LogCaptureFixture) -> str:
    caplog.clear()
    selection = selection_of(study)
    with caplog.at_level(logging.INFO, logger="mqasearch"):
        rows = finished(study)
        Progress().watcher.on_trial(selection, rows[-1] if rows else None)
    return caplog.messages[0] if caplog.messages else ""


def shown_by_status(study: optuna.Study) -> Any:
    return dict(zip(STATUS_HEADERS, study_row(selection_of(study)), strict=True))["best value"]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    truth=st.lists(VALUES, min_size=len(MASKS), max_size=len(MASKS)),
    trials=st.tuples(TRIALS, TRIALS),
    metric=st.sampled_from(METRICS),
)
def test_all_readers_name_the_same_best_mask(
    truth: list[float],
    trials: tuple[list[tuple[LayerMask, float | None, str]], ...],
    metric: str,
    known: dict[str, list[StudyFacts]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    storage = history_of(known[metric], truth, trials)
    studies = studies_in(storage)
    bests = [best_trial(study) for study in studies]
    assert [row and row.value for row in bests] == [optunas_best(study) for study in studies]
    for row in bests:
        assert row is None or (row.n_converted, row.given_up) == (BUDGET, None)
    compared = [(row.trial_number, row.value) for row in compare(studies)]
    told = [(row.number, row.value) if row else (None, None) for row in bests]
    assert compared == told
    assert [shown_by_status(study) for study in studies] == [value for _, value in told]
    (comparison,) = read_comparisons(storage)
    for study, row in zip(comparison.studies, bests, strict=True):
        ours, improved, first = shown_by_dashboard(study)
        assert ours == (row and (row.number, row.value))
        assert improved == (row and row.value)
        assert row is None or first == str(row.number)
    for study, row in zip(studies, bests, strict=True):
        line = logged_by_progress(study, caplog)
        assert ("best" in line) == (row is not None)
        assert row is None or f"best {row.value:.4f}" in line
    _check_the_whole_comparison(storage, [row for row in bests if row is not None])


def _check_the_whole_comparison(storage: BaseStorage, bests: list[FinishedTrial]) -> None:
    """Export, the dashboard's index and its list of masks agree on the best of all selectors."""
    studies = studies_in(storage)
    (comparison,) = read_comparisons(storage)
    top = max if comparison.studies[0].maximize else min
    page = comparison_page(comparison).decode()
    if not bests:
        assert comparison.best is None
        assert "Masks at the budget: 0" in page
        return
    document = export("s", studies)
    _, row = comparison.best or pytest.fail("there is a best mask")
    first = document["masks"][0]
    assert "".join(map(str, first["mask"])) == row.mask
    assert first["scores"]["hellaswag"]["acc"]["value"] == row.value
    assert row.value == top(one.value for one in bests)
    listed = page.index('title="')
    assert page[listed:].startswith(f'title="{row.mask}"')
    full = {
        trial.user_attrs[MASK_KEY]: trial.user_attrs[FACTS_KEY]["value"]
        for study in studies
        for trial in study.trials
        if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
        and trial.user_attrs[FACTS_KEY]["given_up"] is None
    }
    for point in document["front"]:
        mask = "".join(map(str, point["mask"]))
        assert full[mask] == point["value"]
        rivals = [v for m, v in full.items() if m.count("1") >= mask.count("1")]
        assert point["value"] == top(rivals)
    line = budget_front([comparison]).data[0]
    for n_converted, value in zip(line.x, line.y, strict=True):
        assert value == top(v for m, v in full.items() if m.count("1") == n_converted)
    ends = [trace.y[-1] for trace in selectors_by_evaluations(comparison).data[:2] if trace.y]
    assert top(ends) == row.value


@given(truth=st.lists(VALUES, min_size=len(MASKS), max_size=len(MASKS)), trials=TRIALS)
@settings(max_examples=40, deadline=None)
def test_a_race_is_against_the_best_mask_of_its_size(
    truth: list[float],
    trials: list[tuple[LayerMask, float | None, str]],
    known: dict[str, list[StudyFacts]],
) -> None:
    (study, _) = studies_in(history_of(known["bits_per_byte"], truth, (trials, [])))
    at_budget = best_trial(study)
    found = incumbent(
        selection_of(study).tasks(), SearchSpace(N_LAYERS, BUDGET), BUDGET, maximize=False
    )
    assert str(found) == (at_budget.facts.mask if at_budget else "None")


ROWS = st.lists(
    st.builds(
        lambda number, n, value, given_up: FinishedTrial(
            number,
            TrialFacts("0" * 9, n, 100 - n, value, 0.0, 0.0, False, {}, given_up=given_up),
            number,
        ),
        st.integers(0, 20),
        st.integers(0, 3),
        st.one_of(VALUES, st.sampled_from([math.nan, math.inf, -math.inf])),
        st.one_of(st.none(), st.just(50)),
    )
)


@given(ROWS, st.booleans())
def test_the_best_is_the_first_of_the_ranked_and_the_last_improvement(
    rows: list[FinishedTrial], maximize: bool
) -> None:
    order = ranked(rows, maximize=maximize)
    first = best(rows, maximize=maximize)
    assert first is (order[0] if order else None)
    assert all(math.isfinite(row.value) and row.given_up is None for row in order)
    values = [row.value for row in order]
    assert values == sorted(values, reverse=maximize)
    for one, other in itertools.pairwise(order):
        assert one.value != other.value or one.order <= other.order
    steps = improvements(rows, maximize=maximize)
    assert [row.value for row in steps] == sorted(
        {row.value for row in steps}, reverse=not maximize
    )
    assert not order or steps[-1].value == order[0].value


@given(ROWS, st.booleans())
def test_no_row_beats_one_on_the_front(rows: list[FinishedTrial], maximize: bool) -> None:
    sign = -1 if maximize else 1

    def beats(one: FinishedTrial, other: FinishedTrial) -> bool:
        ours = (one.facts.kv_bytes_per_token, sign * one.value)
        theirs = (other.facts.kv_bytes_per_token, sign * other.value)
        return ours != theirs and all(a <= b for a, b in zip(ours, theirs, strict=True))

    points = front(rows, lambda row: row.facts.kv_bytes_per_token, maximize=maximize)
    rivals = ranked(rows, maximize=maximize)
    assert not any(beats(row, point) for row in rivals for point in points)
    for row in rivals:
        assert row in points or any(
            beats(point, row) or (point.value == row.value and point.n_converted == row.n_converted)
            for point in points
        )


def test_of_equal_masks_the_one_proposed_first_is_better_then_the_one_given_first() -> None:
    facts = TrialFacts("0011", 2, 1, 1.0, 0.0, 0.0, False, {})
    rows = [
        FinishedTrial(9 - n, replace(facts, mask=m), n) for n, m in ((4, "a"), (2, "b"), (2, "c"))
    ]
    assert [row.facts.mask for row in ranked(rows, maximize=False)] == ["b", "c", "a"]


def test_of_equal_masks_the_record_names_the_one_that_the_queue_names() -> None:
    """Trials are recorded as they end, in another order than that of their tasks."""
    study = optuna.create_study()
    for task_number, mask in ((7, MASKS[3]), (4, MASKS[5])):
        trial = trial_of(mask, 1.0, None, "ended")
        trial.set_user_attr(TASK_KEY, task_number)
        study.add_trial(trial)
    chosen = best_trial(study)
    assert chosen is not None
    assert (chosen.number, chosen.facts.mask) == (1, str(MASKS[5]))
