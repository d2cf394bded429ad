"""The study file's JSON schema: published as it is made, and as wide as what is accepted."""

import json
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from mqasearch.creation.study_schema import study_schema
from mqasearch.errors import SpecError
from mqasearch.export import schema
from mqasearch.selectors import SELECTORS
from mqasearch.spec import parse_spec
from tests.creation.test_model_study import STUDIES

VALIDATOR = Draft202012Validator(study_schema())
GOOD: dict[str, Any] = {"name": "s", "model": "m", "budget": 2, "tasks": ["t"]}


def faults(data: object) -> list[str]:
    return [error.message for error in VALIDATOR.iter_errors(data)]


def test_the_published_schema_is_that_of_today() -> None:
    again = "mqasearch schema study > mqasearch/export/study.schema.json"
    assert schema("study") == study_schema(), f"make it again: {again}"


def test_it_is_a_schema_and_takes_the_studies_of_the_repository() -> None:
    Draft202012Validator.check_schema(study_schema())
    assert STUDIES
    for path in STUDIES:
        assert faults(yaml.safe_load(path.read_text())) == []


def test_a_budget_in_time_may_name_a_file() -> None:
    for latency in ("latency.json", {"file": "l.json", "context": 8}, TIMED["latency"]):
        assert faults(GOOD | {"budget": {"decode_fraction": "4/5", "latency": latency}}) == []


@pytest.mark.parametrize(
    "change",
    [
        {"budgets": 1},
        {"budget": {"decode_ms": 3, "latency": {"file": "l.json", "contexts": 8}}},
        {"budget": "most"},
        {"budget": {"layers": 2}},
        {"selectors": ["gready"]},
        {"selectors": [{"name": "gp", "n_mask": 3}]},
        {"selectors": [{"name": "gp", "n_masks": "three"}]},
        {"merge": "meen"},
        {"merge": {"name": "aligned", "refit": "yes"}},
        {"documents": {"search": 1}},
        {"heal": "all"},
        {"tasks": []},
    ],
)
def test_it_refuses_what_is_not_known(change: dict[str, Any]) -> None:
    assert faults(GOOD) == []
    assert faults(GOOD | change)


TIMED = {"decode_ms": 3, "latency": {"context": 8, "batch_size": 1, "ms": {"2": 4, "1": 2.5}}}
BUDGETS = (1, 3, "auto", {"n_layers": 2}, [1, {"kv_bytes_fraction": 0.5}], 0, TIMED, [TIMED])
ENTRIES = {
    "budget": st.sampled_from(BUDGETS),
    "heal": st.sampled_from([True, False, None, "auto", 7, {"steps": 9, "tokens": 5}, 0]),
    "tolerance": st.sampled_from([None, [], {"metric": "acc", "points": 1}, {"points": 2}]),
    "pruner": st.sampled_from([None, "paired_mean", {"name": "paired_mean", "p_threshold": 0.02}]),
    "merge": st.sampled_from(["mean", {"name": "aligned"}, {"name": "aligned", "tune": False}]),
    "tasks": st.sampled_from([["t"], [{"name": "t", "weight": 2}], [{"name": "t", "limit": 0}]]),
    "documents": st.sampled_from([{}, {"search": "full"}, {"search": None}, {"seed": -1}]),
    "n_trials": st.sampled_from([1, 50, 0, "x"]),
}


@given(st.fixed_dictionaries({}, optional=ENTRIES), st.sampled_from([*SELECTORS]))
def test_what_is_accepted_has_no_fault_in_the_schema(
    changes: dict[str, Any], selector: str
) -> None:
    data = GOOD | {"selectors": [selector]} | changes
    try:
        parse_spec(json.loads(json.dumps(data)), "s.yaml")
    except SpecError:
        return
    assert faults(data) == []


@pytest.mark.parametrize("selector", SELECTORS)
def test_every_parameter_of_a_selector_may_be_given(selector: str) -> None:
    entry = {name: default for name, (_, default) in SELECTORS.parameters(selector).items()}
    assert faults(GOOD | {"selectors": [{"name": selector, "n_trials": 3, **entry}]}) == []
