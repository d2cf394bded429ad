"""The names in a study file: each must exist, and all faults are told at once."""

from typing import Any

import pytest

from mqasearch.creation import names
from mqasearch.creation.names import checked_study
from mqasearch.errors import SpecError, UnknownNameError
from mqasearch.selectors import RECOMMENDED
from mqasearch.spec import parse_spec

GOOD: dict[str, Any] = {
    "name": "s",
    "model": "smollm2-135m",
    "budget": 2,
    "tasks": ["hellaswag"],
    "selectors": ["greedy"],
}
TOLERANCE = {"metric": "acc_norm", "points": 1}


@pytest.fixture(autouse=True)
def metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three tasks, without lm-eval's; a larger ``kl`` is worse, a larger accuracy better."""
    having = {
        "hellaswag": ["kl", "acc", "acc_norm"],
        "piqa": ["kl", "acc", "acc_norm"],
        "wikitext": ["kl"],
    }

    def higher_is_better(task: str, metric: str) -> bool:
        if task not in having:
            raise UnknownNameError("task", task, having)
        if metric not in having[task]:
            raise UnknownNameError(f"metric of {task}", metric, having[task])
        return metric != "kl"

    monkeypatch.setattr(names, "higher_is_better", higher_is_better)


def faults(data: object) -> tuple[str, ...]:
    with pytest.raises(SpecError) as caught:
        checked_study(data, "s.yaml")
    return caught.value.faults


def test_unknown_names_are_answered_with_the_nearest_one_beside_all_other_faults() -> None:
    data = GOOD | {
        "model": "fake:x",
        "tasks": ["helaswag", {"name": "piqa", "metric": "ac"}],
        "selectors": ["gready", {"name": "gp", "n_maskz": 1}, {"name": "greedy", "n_trials": 0}],
        "merge": {"name": "aligned", "refits": True},
        "seed": "x",
    }
    starts = {
        "seed: ": "'x'",
        "selectors.2.n_trials: ": "greater than or equal to 1",
        "model.name: ": "fake:12",
        "tasks.0: ": "did you mean 'hellaswag'?",
        "tasks.1: ": "did you mean 'acc'?",
        "selectors.0: ": "did you mean 'greedy'?",
        "selectors.1: ": "did you mean 'n_masks'?",
        "merge: ": "did you mean 'refit'?",
    }
    rows = faults(data)
    assert len(rows) == len(starts)
    for start, said in starts.items():
        (row,) = (row for row in rows if row.startswith(start))
        assert said in row


def test_the_name_of_an_entry_with_another_fault_is_checked_too() -> None:
    rows = faults(GOOD | {"model": {"name": "fake:x", "dtype": "int8"}})
    assert [row.partition(":")[0] for row in rows] == ["model.dtype", "model.name"]


def test_what_must_be_a_list_and_is_none_is_told_once() -> None:
    for change in ({"tasks": "helaswag"}, {"selectors": "gready"}, {"merge": ["meen"]}):
        assert len(faults(GOOD | change)) == 1


def test_every_tolerance_with_a_fault_is_told() -> None:
    given = [TOLERANCE | {"task": "nope"}, {"metric": "bcc", "points": 1}]
    assert len(faults(GOOD | {"tolerance": given})) == 2


def test_metrics_of_one_objective_have_one_direction() -> None:
    data = GOOD | {"tasks": ["piqa", {"name": "hellaswag", "metric": "acc"}]}
    (row,) = faults(data)
    assert row.startswith("tasks: one objective cannot both rise and fall (kl of piqa falls")


def test_a_file_that_chooses_nothing_takes_the_recommended_selectors() -> None:
    data = {key: value for key, value in GOOD.items() if key != "selectors"}
    chosen = checked_study(data, "s.yaml")
    assert {s.name: s.parameters for s in chosen.selectors} == RECOMMENDED
    assert parse_spec(chosen.model_dump(mode="json"), "stored") == chosen
    for choice in ({"selectors": []}, {}):
        spec = checked_study(data | choice | {"enqueue": {"a": [1]}}, "s.yaml")
        assert spec.selectors == []
    assert len(faults(data | {"selectors": []})) == 1


def test_what_is_no_mapping_is_told_what_was_expected() -> None:
    assert faults("text") == faults(None)
    assert "expected keys" in faults("text")[0]


@pytest.mark.parametrize(
    ("tolerance", "documents", "message"),
    [
        ({"metric": "acc_nrm", "points": 1}, {}, "did you mean 'acc_norm'"),
        (TOLERANCE, {"confirmation": 200}, "200 held-out documents can never show acc_norm within"),
        (TOLERANCE | {"task": "piqa"}, {}, "unknown task 'piqa': known: hellaswag"),
        ([TOLERANCE, {"metric": "kl", "points": 1}], {"confirmation": 2}, "tolerance: 2 held-out"),
    ],
)
def test_a_tolerance_that_can_never_be_shown_is_refused_in_one_line(
    tolerance: object, documents: object, message: str
) -> None:
    (row,) = faults(GOOD | {"tolerance": tolerance, "documents": documents})
    assert message in row
    assert "\n" not in row


def test_a_tolerance_is_of_the_tasks_that_have_its_metric() -> None:
    data = GOOD | {"tasks": ["wikitext", "hellaswag"], "tolerance": TOLERANCE}
    checked_study(data, "s.yaml")
    (row,) = faults(data | {"tolerance": TOLERANCE | {"task": "wikitext"}})
    assert "unknown metric of wikitext" in row
