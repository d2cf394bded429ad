"""Classes that a study file may name, with the parameters that it may give them."""

import inspect
import math
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeVar

from mqasearch.errors import UnknownNameError, UserError


class Named(Protocol):
    """An instance of a class of a registry."""

    name: typing.ClassVar[str]


Kind = TypeVar("Kind", bound=Named)


class Registry(Mapping[str, type[Kind]]):
    """Classes by their ``name``.

    A class's parameters are the keyword-only arguments of its constructor. Each has a type
    (``bool``, ``int``, ``float`` or a ``Literal``) and a default.

    Example:
        >>> from typing import ClassVar
        >>> class Square:
        ...     name: ClassVar[str] = "square"
        ...     def __init__(self, *, side: float = 1.0) -> None:
        ...         self.side = side
        >>> shapes = Registry("shape", [Square])
        >>> shapes.checked("square", {"side": 2})
        {'side': 2.0}
    """

    def __init__(self, kind: str, classes: Iterable[type[Kind]], also: Sequence[str] = ()) -> None:
        """
        Args:
            kind: what an instance is called in error messages.
            classes: the classes, in the order in which they are listed.
            also: parameters that the study file may give besides, for everything of this kind.
        """
        self.kind = kind
        self._classes = {each.name: each for each in classes}
        self._also = tuple(also)

    def __getitem__(self, name: str) -> type[Kind]:
        return self._classes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._classes)

    def __len__(self) -> int:
        return len(self._classes)

    def summary(self, name: str) -> str:
        """One line on a class: its attribute ``summary``, or else its docstring's first line."""
        known = self[name]
        lines = (inspect.getdoc(known) or "").splitlines()
        return str(getattr(known, "summary", lines[0]))

    def parameters(self, name: str) -> dict[str, tuple[Any, Any]]:
        """A class's parameters: name → (type, default)."""
        constructor = self[name].__init__
        types = typing.get_type_hints(constructor)
        return {
            parameter.name: (types[parameter.name], parameter.default)
            for parameter in inspect.signature(constructor).parameters.values()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY
        }

    def checked(self, name: str, given: Mapping[str, object]) -> dict[str, Any]:
        """Parameters as the constructor takes them: a whole number may stand for a float.

        Ranges are left to the constructor.

        Raises:
            UnknownNameError: there is no such class, or it has no such parameter.
            UserError: a parameter has a wrong type.
        """
        if name not in self:
            raise UnknownNameError(self.kind, name, self)
        known = self.parameters(name)
        return {key: self._value(name, key, value, known) for key, value in given.items()}

    def _value(
        self, name: str, parameter: str, value: object, known: Mapping[str, tuple[Any, Any]]
    ) -> Any:
        owner = f"{self.kind} {name!r}"
        if not known:
            raise UserError(f"{owner} takes no parameters, not even {parameter!r}")
        if parameter not in known:
            everything = {*known, *self._also}
            raise UnknownNameError(f"parameter of {owner}:", parameter, everything)
        wanted, _ = known[parameter]
        if (expected := _mismatch(value, wanted)) is not None:
            raise UserError(f"{parameter} of {owner}: expected {expected}, got {value!r:.80}")
        return float(typing.cast(float, value)) if wanted is float else value


def _mismatch(value: object, wanted: Any) -> str | None:
    """What was expected in place of ``value``; None if the value fits."""
    if typing.get_origin(wanted) is Literal:
        choices = typing.get_args(wanted)
        return None if value in choices else " or ".join(map(str, choices))
    if wanted is bool:
        return None if isinstance(value, bool) else "true or false"
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if wanted is int:
        return None if is_number and isinstance(value, int) else "a whole number"
    try:
        is_finite = is_number and math.isfinite(typing.cast(float, value))
    except OverflowError:  # a whole number that no float can hold
        is_finite = False
    return None if is_finite else "a finite number"
