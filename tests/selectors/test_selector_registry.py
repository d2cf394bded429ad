"""Selectors by name, and one line for whatever is wrong with their parameters."""

import inspect

import pytest

from mqasearch.errors import UnknownNameError, UserError
from mqasearch.search_space import SearchSpace
from mqasearch.selectors import (
    PLANNED,
    RECOMMENDED,
    SELECTORS,
    check_parameters,
    selector_of,
)


@pytest.mark.parametrize("name", SELECTORS)
def test_every_selector_is_made_by_its_name_and_tells_what_it_is(name: str) -> None:
    sampler = selector_of(name, SearchSpace(6, 2), seed=3)
    assert type(sampler) is SELECTORS[name]
    assert (sampler.space, sampler.seed) == (SearchSpace(6, 2), 3)
    assert sampler.summary
    assert "\n" not in sampler.summary
    assert (name in PLANNED) == sampler.ends
    assert inspect.getdoc(type(sampler)) != inspect.getdoc(SELECTORS[name].__base__)


@pytest.mark.parametrize("name", SELECTORS)
def test_defaults_are_accepted_when_given(name: str) -> None:
    check_parameters(
        name, {key: default for key, (_, default) in SELECTORS.parameters(name).items()}
    )


@pytest.mark.parametrize("name", RECOMMENDED)
def test_what_is_recommended_can_be_made(name: str) -> None:
    check_parameters(name, RECOMMENDED[name])


@pytest.mark.parametrize(
    ("name", "parameters", "said"),
    [
        ("greedi", {}, "did you mean 'greedy'?"),
        ("greedy", {"lasy": True}, "did you mean 'lazy'?"),
        ("greedy", {"lazy": 1}, "lazy of selector 'greedy': expected true or false, got 1"),
        ("random", {"lazy": True}, "'random' takes no parameters"),
        ("alternating", {"start": "back"}, "expected end or front, got 'back'"),
        ("alternating", {"start": ["end"]}, "expected end or front, got ['end']"),
        ("alternating", {"stride": 1.5}, "expected a whole number, got 1.5"),
        ("alternating", {"stride": True}, "expected a whole number, got True"),
        ("alternating", {"stride": 0}, "stride 0 leads nowhere"),
        ("consecutive", {"tolerance": "a"}, "expected a finite number, got 'a'"),
        ("consecutive", {"tolerance": float("nan")}, "expected a finite number, got nan"),
        ("consecutive", {"tolerance": -0.1}, "at least 0"),
        ("tpe", {"n_startup_trials": 0}, "n_startup_trials 0 is too few"),
        ("tpe", {"seed": 4}, "unknown parameter of selector 'tpe'"),
    ],
)
def test_bad_parameters_are_answered_in_one_line(
    name: str, parameters: dict[str, object], said: str
) -> None:
    with pytest.raises(UserError) as checked:
        check_parameters(name, parameters)
    assert said in str(checked.value)
    assert "\n" not in str(checked.value)
    if "seed" not in parameters:
        with pytest.raises(UserError, match=r".") as made:
            selector_of(name, SearchSpace(6, 2), 0, **parameters)
        assert str(made.value) == str(checked.value)


def test_unknown_names_are_unknown_name_errors() -> None:
    for name, parameters in (("greedi", {}), ("greedy", {"lasy": True})):
        with pytest.raises(UnknownNameError):
            check_parameters(name, parameters)


@pytest.mark.parametrize("n_converted", [0, 7, -1])
def test_a_budget_that_does_not_fit_is_refused(n_converted: int) -> None:
    with pytest.raises(UserError, match="choose 1 to 6"):
        selector_of("random", SearchSpace(6, n_converted))


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(UserError, match="negative"):
        selector_of("random", SearchSpace(6, 2), seed=-1)


def test_exhaustive_refuses_what_would_never_end() -> None:
    with pytest.raises(UserError, match=r"142,506 masks.*choose 'greedy'"):
        selector_of("exhaustive", SearchSpace(30, 5))
