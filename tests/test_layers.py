"""The house: imports point down only, and rooms are named for what they hold."""

import ast
import functools
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "mqasearch"
FLOORS = (
    ("errors", "interruption", "source_code", "statistics", "time_left"),
    (
        "mask",
        "search_space",
        "budget",
        "score",
        "tolerance",
        "heal_recipe",
        "registry",
        "spec",
        "assets",
        "files",
    ),
    ("families", "models", "database", "engines", "selectors"),
    ("merging", "forward", "queue", "scores"),
    ("conversion", "tasks", "record"),
    ("formats", "healing", "study"),
    ("scoring",),
    ("evaluation", "creation", "export", "dashboard"),
    ("worker", "checkpoint", "launch"),
    ("api", "latency"),
    ("cli",),
    ("__main__",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
FORBIDDEN = {  # room → packages that it must not know
    "selectors": {"torch", "transformers", "lm_eval", "sqlalchemy"},
    "merging": {"optuna", "sqlalchemy", "lm_eval"},
    "conversion": {"optuna", "sqlalchemy", "lm_eval"},
    "forward": {"optuna", "sqlalchemy", "lm_eval"},
    "database": {"optuna", "torch", "transformers", "lm_eval"},
    "scores": {"optuna", "torch", "transformers", "lm_eval"},
    "queue": {"optuna", "torch", "transformers", "lm_eval"},
    "spec": {"optuna", "torch", "transformers", "sqlalchemy"},
}
LIGHT = ("spec", "selectors", "scores", "queue", "record", "study", "export", "dashboard")
"""Rooms that read what is stored; whoever only reads does not wait for torch."""
EXTRAS = {"launch.postgres", "launch.ray_tasks"}
"""Modules that need an optional package, so no face imports them."""
Definition = ast.FunctionDef | ast.ClassDef
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
    assert rooms == FLOOR.keys()


def face(of: str) -> set[str]:
    """What a room offers to others: ``__all__`` of its ``__init__``."""
    for node in nodes(ROOT / of / "__init__.py"):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    raise AssertionError(f"{of} has no __all__")


def test_every_room_says_what_it_holds_and_what_it_offers() -> None:
    for path in ROOT.glob("*/__init__.py"):
        assert ast.get_docstring(ast.parse(path.read_text())), path
        assert face(path.parent.name), path


def test_other_rooms_use_the_face_alone() -> None:
    """A room may be rearranged without a look at the others."""
    scripts = [*ROOT.parent.glob("benchmarks/*.py"), *ROOT.parent.glob("engines/*.py")]
    around = []
    for path in (*FILES, *scripts):
        here = room(path) if path in FILES else ""
        for node in nodes(path):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith(
                "mqasearch."
            ):
                continue
            there, _, inner = (node.module or "").removeprefix("mqasearch.").partition(".")
            if there == here or f"{there}.{inner}" in EXTRAS or not (ROOT / there).is_dir():
                continue
            names = {alias.name for alias in node.names}
            private = bool(inner) and not here and any(name.startswith("_") for name in names)
            if (inner and not private) or (here and not inner and not names <= face(there)):
                around.append(f"{path}:{node.lineno}: {ast.unparse(node)}")
    assert not around, "\n".join(around)


def test_a_room_imports_its_own_files_and_not_its_face() -> None:
    own = [
        f"{path}:{node.lineno}: {ast.unparse(node)}"
        for path in FILES
        if (ROOT / room(path)).is_dir() and path.stem != "__init__"
        for node in nodes(path)
        if isinstance(node, ast.ImportFrom) and node.module == f"mqasearch.{room(path)}"
        if {alias.name for alias in node.names} & face(room(path))
    ]
    assert not own, "\n".join(own)


@pytest.mark.processes
def test_reading_rooms_load_no_torch() -> None:
    rooms = ", ".join(f"mqasearch.{each}" for each in LIGHT)
    code = f"import sys, {rooms}; print(*{{'torch', 'transformers', 'lm_eval'}} & {{*sys.modules}})"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.split() == []


def test_no_two_files_have_one_name() -> None:
    names = Counter(path.stem for path in FILES if "versions" not in path.parts)
    assert {name for name, n in names.items() if n > 1} <= {"__init__", "__main__"}


def test_no_attics() -> None:
    assert not [path for path in FILES if path.stem in {"utils", "helpers", "common", "misc"}]


def test_scripts_import_what_there_is() -> None:
    """No test runs most of benchmarks/ and engines/, and mypy does not read them."""
    missing = []
    for path in (*ROOT.parent.glob("benchmarks/*.py"), *ROOT.parent.glob("engines/*.py")):
        for node in nodes(path):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mqasearch."):
                place = ROOT.joinpath(*(node.module or "").split(".")[1:])
                file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
                known = {each.name for each in nodes(file) if isinstance(each, Definition)}
                known |= {each.id for each in nodes(file) if isinstance(each, ast.Name)}
                known |= {name.rpartition(".")[2] for name, _ in imports(file)}
                known |= {each.stem for each in place.glob("*.py")}
                missing += [f"{path}: {a.name}" for a in node.names if a.name not in known]
    assert not missing, "\n".join(missing)
