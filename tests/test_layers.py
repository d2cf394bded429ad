"""The house: imports point down only, and rooms are named for what they hold."""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1] / "mqasearch"
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
    ("evaluation", "queue"),
    ("healing",),
    ("search",),
    ("dashboard", "launch", "serving"),
    ("api",),
    ("cli",),
    ("__main__",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
FORBIDDEN = {  # room → packages that it must not know
    "selectors": {"torch", "transformers", "lm_eval", "sqlalchemy"},
    "conversion": {"optuna", "sqlalchemy", "lm_eval"},
    "results": {"optuna", "torch", "transformers", "lm_eval"},
    "queue": {"optuna", "torch", "transformers", "lm_eval"},
    "spec": {"optuna", "torch", "transformers", "sqlalchemy"},
}
FILES = sorted(ROOT.rglob("*.py"))
assert FILES


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@functools.cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text())))


def imports(path: Path) -> Iterator[tuple[str, int]]:
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def test_imports_point_down() -> None:
    """Floor 1 is the vocabulary: its rooms may use each other."""
    upward = []
    for path in FILES:
        here = room(path)
        if here == "__init__":
            continue
        for name, line in imports(path):
            top, *rest = name.split(".")
            if top != "mqasearch" or not rest or rest[0] not in FLOOR or rest[0] == here:
                continue
            there = rest[0]
            if FLOOR[there] > FLOOR[here] or FLOOR[there] == FLOOR[here] != 1:
                floors = f"{here} (floor {FLOOR[here]}) imports {there} ({FLOOR[there]})"
                upward.append(f"{path}:{line}: {floors}")
    assert not upward, "\n".join(upward)


def test_rooms_keep_to_their_packages() -> None:
    forbidden = [
        f"{path}:{line}: {room(path)} must not know {name}"
        for path in FILES
        for name, line in imports(path)
        if name.partition(".")[0] in FORBIDDEN.get(room(path), ())
    ]
    assert not forbidden, "\n".join(forbidden)


def test_nothing_private_of_optuna_is_used() -> None:
    """So that Optuna can be upgraded: no module of its own, and no attribute of what it returns."""
    modules = [
        f"{path}:{line}: {name}"
        for path in FILES
        for name, line in imports(path)
        if name.partition(".")[0] in ("optuna", "optuna_dashboard") and "._" in name
    ]
    functions = (
        each for path in FILES for each in nodes(path) if isinstance(each, ast.FunctionDef)
    )
    ours = {function.name for function in functions}
    attributes = [
        f"{path}:{node.lineno}: {ast.unparse(node)}"
        for path in FILES
        if any(name.partition(".")[0] == "optuna" for name, _ in imports(path))
        for node in nodes(path)
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
        and ast.unparse(node.value) not in ("self", "super()")
        and node.attr not in ours
    ]
    assert not [*modules, *attributes], "\n".join([*modules, *attributes])


def test_imports_are_absolute() -> None:
    relative = [
        f"{path}:{node.lineno}"
        for path in FILES
        for node in nodes(path)
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert not relative, "\n".join(relative)


def test_imports_stand_at_the_top() -> None:
    """Only the command line defers imports; only it may hide one behind TYPE_CHECKING.

    So may the package itself: ``import mqasearch`` is quick, and ``mqasearch.load`` needs torch. An
    engine's driver imports the engine when it is asked to, so that a failure is an answer too.
    """
    nested = [
        f"{path}:{inner.lineno}: import inside {node.name}"
        for path in FILES
        if room(path) not in ("cli", "__init__") and path.parent.name != "drivers"
        for node in nodes(path)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(node)
        if isinstance(inner, ast.Import | ast.ImportFrom)
    ]
    assert not nested, "\n".join(nested)


def test_every_room_has_a_floor() -> None:
    rooms = {room(path) for path in FILES} - {"__init__"}
    assert rooms <= FLOOR.keys()


def test_no_attics() -> None:
    assert not [path for path in FILES if path.stem in {"utils", "helpers", "common", "misc"}]
