"""The registry: what a class takes is what its constructor says."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import pytest

from mqasearch.errors import UnknownNameError, UserError
from mqasearch.registry import Registry


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A line that bends."""

    name: ClassVar[str] = "curve"
    steps: int = 3
    weight: float = 1.0
    closed: bool = False
    kind: Literal["cubic", "linear"] = "cubic"


class Point:
    """Nothing else."""

    name: ClassVar[str] = "point"
    summary: ClassVar[str] = "no parameters"

    def __init__(self, place: int = 0) -> None:
        self.place = place


SHAPES = Registry("shape", (Curve, Point), also=("colour",))


def test_it_is_a_mapping_in_the_order_given() -> None:
    assert dict(SHAPES) == {"curve": Curve, "point": Point}
    assert list(SHAPES) == ["curve", "point"]
    assert [SHAPES.summary(name) for name in SHAPES] == ["A line that bends.", "no parameters"]


def test_parameters_are_the_keyword_only_arguments() -> None:
    assert SHAPES.parameters("point") == {}
    assert SHAPES.parameters("curve") == {
        "steps": (int, 3),
        "weight": (float, 1.0),
        "closed": (bool, False),
        "kind": (Literal["cubic", "linear"], "cubic"),
    }


def test_defaults_are_accepted_and_make_the_same_thing() -> None:
    given = {name: default for name, (_, default) in SHAPES.parameters("curve").items()}
    assert Curve(**SHAPES.checked("curve", given)) == Curve()


def test_a_whole_number_stands_for_a_float_and_for_nothing_else() -> None:
    checked = SHAPES.checked("curve", {"weight": 2, "steps": 2})
    assert [type(checked[name]) for name in ("weight", "steps")] == [float, int]


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("curv", {}, "unknown shape 'curv': did you mean 'curve'?"),
        ("point", {"place": 1}, "shape 'point' takes no parameters, not even 'place'"),
        ("curve", {"step": 1}, "unknown parameter of shape 'curve': 'step': did you mean 'steps'?"),
        ("curve", {"color": 1}, "did you mean 'colour'?"),
        ("curve", {"steps": True}, "steps of shape 'curve': expected a whole number, got True"),
        ("curve", {"steps": 1.0}, "expected a whole number, got 1.0"),
        ("curve", {"weight": True}, "expected a finite number, got True"),
        ("curve", {"weight": float("inf")}, "expected a finite number, got inf"),
        ("curve", {"weight": 10**400}, "expected a finite number, got 1000"),
        ("curve", {"closed": 0}, "expected true or false, got 0"),
        ("curve", {"kind": ["cubic"]}, "expected cubic or linear, got ['cubic']"),
    ],
)
def test_what_does_not_fit_is_one_line(name: str, given: dict[str, object], said: str) -> None:
    with pytest.raises(UserError) as caught:
        SHAPES.checked(name, given)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, UnknownNameError) == ("unknown" in said or "did you" in said)
