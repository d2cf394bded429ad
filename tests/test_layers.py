"""The house: imports point down only, and rooms are named for what they hold."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import mqasearch

ROOT = Path(mqasearch.__file__).parent
FLOORS = (
    ("errors", "interruption"),
    (
        "mask",
        "budget",
        "score",
        "tolerance",
        "spec",
        "spec_budget",
        "spec_faults",
        "spec_yaml",
        "estimate",
        "source_code",
        "assets",
    ),
    ("families", "models"),
    ("conversion", "selectors", "results"),
    ("evaluation",),
    ("healing",),
    ("search",),
    ("dashboard", "launch", "report", "serving"),
    ("api",),
    ("cli",),
    ("__main__",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
FORBIDDEN = {  # room → packages that it must not know
    "selectors": {"torch", "transformers", "lm_eval", "sqlalchemy"},
    "conversion": {"optuna", "sqlalchemy", "lm_eval"},
    "results": {"optuna", "torch", "transformers", "lm_eval"},
    "spec": {"optuna", "torch", "transformers", "sqlalchemy"},
}
FILES = sorted(ROOT.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    here = room(path)
    if here == "__init__":
        return
    for name, line in imports(ast.parse(path.read_text())):
        top, *rest = name.split(".")
        if top == "mqasearch" and rest and rest[0] in FLOOR:
            there = rest[0]
            assert FLOOR[there] < FLOOR[here] or there == here or same_floor(here, there), (
                f"{path}:{line}: {here} (floor {FLOOR[here]}) imports {there} ({FLOOR[there]})"
            )
        assert top not in FORBIDDEN.get(here, ()), f"{path}:{line}: {here} must not know {top}"


def same_floor(here: str, there: str) -> bool:
    """Floor 1 is the vocabulary: its rooms may use each other."""
    return FLOOR[here] == FLOOR[there] == 1


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_stand_at_the_top(path: Path) -> None:
    """Only the command line defers imports; only it may hide one behind TYPE_CHECKING.

    So may the package itself: ``import mqasearch`` is quick, and ``mqasearch.load`` needs torch. An
    engine's driver imports the engine when it is asked to, so that a failure is an answer too.
    """
    if room(path) in ("cli", "__init__") or path.parent.name == "drivers":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            nested = [n for n in ast.walk(node) if isinstance(n, ast.Import | ast.ImportFrom)]
            assert not nested, f"{path}:{nested[0].lineno}: import inside {node.name}"


def test_every_room_has_a_floor() -> None:
    rooms = {room(path) for path in FILES} - {"__init__"}
    assert rooms <= FLOOR.keys()


def test_no_attics() -> None:
    assert not [path for path in FILES if path.stem in {"utils", "helpers", "common", "misc"}]
