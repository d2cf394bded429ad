"""More trials for a study: once a call, all studies or none, seen by whoever is at work."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError
from studies_on_fake import run_study, scoring_of, spec_of, studies_of

from mqasearch.creation.create import create_studies
from mqasearch.creation.more_trials import More, check_extendable
from mqasearch.errors import UserError
from mqasearch.record import Storage, attributes_table, study_facts
from mqasearch.scoring import FakeScorer
from mqasearch.study import Selection, best_trial, find_studies, finished, open_selections
from mqasearch.worker import NO_LIMITS, Watcher, add_trials, work_with

SELECTORS = [
    "greedy",
    {"name": "gp", "n_masks": 4},
    {"name": "random", "n_trials": 6},
    {"name": "tpe", "n_trials": 8},
]
TEN_MORE = More(10, adds=True)


def numbers(storage: Storage) -> dict[str, int]:
    return {
        study.study_name.partition(".")[2]: len(finished(study)) for study in studies_of(storage)
    }


def test_selectors_with_a_number_get_more_and_plans_that_end_by_themselves_do_not(
    storage: Storage,
) -> None:
    spec, scorer = spec_of(selectors=SELECTORS), FakeScorer(8)
    run_study(storage, spec, scorer)
    before = numbers(storage)
    changed = add_trials(storage, "s", TEN_MORE)
    assert changed == {"s.gp": (4, 14), "s.random": (6, 16), "s.tpe": (8, 18)}
    assert all(s.outlook().value != "done" for s in selections_of(storage) if s.facts.n_more)
    run_study(storage, spec, scorer)  # as without any option
    after = numbers(storage)
    assert {name: after[name] - before[name] for name in after} == {
        "greedy": 0,
        "gp": 10,
        "random": 10,
        "tpe": 10,
    }
    assert run_study(storage, spec, scorer) == 0


def selections_of(storage: Storage) -> list[Selection]:
    return open_selections(storage.optuna, find_studies(storage.optuna, "s"))


def test_a_total_is_reached_once_however_often_it_is_asked_for(storage: Storage) -> None:
    spec, scorer = spec_of(selectors=SELECTORS), FakeScorer(8)
    create_studies(storage.optuna, spec, scorer.shape)
    for _ in range(2):
        add_trials(storage, "s", More(7, adds=False))
    assert [s.facts.allotted for s in selections_of(storage)] == [None, 7, 7, 8]
    assert add_trials(storage, "s", More(7, adds=False)) == {}
    add_trials(storage, "s", TEN_MORE)
    add_trials(storage, "s", TEN_MORE)
    assert [s.facts.allotted for s in selections_of(storage)] == [None, 27, 27, 28]


def test_whoever_is_at_work_goes_on(storage: Storage) -> None:
    spec, scorer = spec_of(selectors=SELECTORS), FakeScorer(8)
    create_studies(storage.optuna, spec, scorer.shape)
    n_left = [3]

    def extended(selection: Selection, _: object) -> None:
        if selection.facts.selector == "tpe" and n_left:
            n_left[0] -= 1
            if not n_left[0]:
                n_left.clear()
                add_trials(storage, "s", TEN_MORE)

    watcher = Watcher(on_trial=extended)
    studies = find_studies(storage.optuna, "s")
    work_with(scoring_of(scorer), storage, studies, NO_LIMITS, watcher)
    assert numbers(storage) | {"greedy": 0} == {"greedy": 0, "gp": 23, "random": 16, "tpe": 18}


def test_a_best_mask_that_stays_is_not_confirmed_again(storage: Storage) -> None:
    spec, scorer = spec_of(selectors=SELECTORS), FakeScorer(8)
    run_study(storage, spec, scorer)
    before = {s.study_name: best_trial(s) for s in studies_of(storage)}
    add_trials(storage, "s", TEN_MORE)
    confirmed: list[str] = []

    def confirm(selection: Selection) -> None:
        confirmed.append(selection.study.study_name)

    run_study(storage, spec, scorer, watcher=Watcher(on_confirm=confirm))
    changed = [s.study_name for s in studies_of(storage) if best_trial(s) != before[s.study_name]]
    assert confirmed == changed != []


def test_calls_at_the_same_time_all_count(storage: Storage) -> None:
    create_studies(storage.optuna, spec_of(selectors=SELECTORS), FakeScorer(8).shape)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: add_trials(storage, "s", More(1, adds=True)), range(20)))
    assert [s.facts.allotted for s in selections_of(storage)] == [None, 24, 26, 28]


def test_a_lost_answer_adds_nothing_twice(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_studies(storage.optuna, spec_of(selectors=SELECTORS), FakeScorer(8).shape)
    change: Callable[..., Any] = attributes_table._change
    lost: list[OperationalError] = [OperationalError("COMMIT", {}, Exception("connection lost"))]

    def losing(*arguments: Any) -> Any:
        done = change(*arguments)
        if lost:
            raise lost.pop()
        return done

    monkeypatch.setattr(attributes_table, "_change", losing)
    changed = add_trials(storage, "s", TEN_MORE)
    assert not lost
    assert changed == {"s.gp": (4, 14), "s.random": (6, 16), "s.tpe": (8, 18)}
    assert [s.facts.allotted for s in selections_of(storage)] == [None, 14, 16, 18]


def test_all_studies_are_extended_or_none(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_studies(storage.optuna, spec_of(selectors=SELECTORS), FakeScorer(8).shape)
    studies = [storage.optuna.get_study_id_from_name(f"s.{name}") for name in ("gp", "tpe")]
    seen: list[Any] = []

    def change(row: Any) -> Any:
        seen.append(row)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return row | {"n_trials": 99}

    with pytest.raises(KeyboardInterrupt):
        attributes_table.change_together(storage.optuna, studies, "mqasearch:study", change)
    facts = [study_facts(study.user_attrs) for study in studies_of(storage)]
    assert 99 not in [each.n_trials for each in facts if each]


@pytest.mark.parametrize("selectors", [["greedy", "sensitivity"], ["exhaustive"]])
def test_a_study_that_can_take_no_more_says_so(selectors: list[str]) -> None:
    said = ", ".join(selectors)
    with pytest.raises(UserError, match=f"no more trials for {said}: .*gp, evolution, tpe"):
        check_extendable(spec_of(selectors=selectors))
    check_extendable(spec_of(selectors=[*selectors, "random"]))
    check_extendable(spec_of(selectors=[{"name": selectors[0], "n_trials": 3}]))
