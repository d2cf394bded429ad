"""What docs/ and CONTRIBUTING.md say of the source is true; nothing of mqasearch is imported."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path

import pytest
from test_layers import FLOORS, imports, room

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mqasearch"
MODULES = tuple(PACKAGE.rglob("*.py"))
DOCS = {path.name: path.read_text() for path in (*ROOT.glob("docs/*.md"), ROOT / "CONTRIBUTING.md")}
every_doc = pytest.mark.parametrize("doc", sorted(DOCS))

FOLDERS = "mqasearch|tests|benchmarks|engines|studies|docs|dashboards"
PATH = re.compile(rf"`((?:{FOLDERS})/[\w./-]*|[\w.-]+\.(?:md|toml))(?:::(\w+))?`")
Edge = tuple[str, str]


@cache
def text_of(path: Path) -> str:
    return path.read_text()


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(text_of(path))


def fenced(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def assigned(path: Path) -> dict[str, ast.expr]:
    """The names that a module assigns to at its top."""
    found: dict[str, ast.expr] = {}
    for node in parsed(path).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets:
            if isinstance(target, ast.Name) and getattr(node, "value", None) is not None:
                found[target.id] = node.value  # type: ignore[attr-defined]
    return found


def knowing(names: set[str], least: int, *more: Path) -> list[str]:
    """The modules in whose code at least so many of these names stand as strings."""
    quoted = re.compile("|".join(f'"{re.escape(name)}"' for name in names))
    places = [path for path in (*MODULES, *more) if quoted.search(text_of(path))]
    found = [path for path in places if len(strings(parsed(path)) & names) >= least]
    return [path.relative_to(ROOT).as_posix() for path in found]


def strings(node: ast.AST) -> set[str]:
    constants = (each.value for each in ast.walk(node) if isinstance(each, ast.Constant))
    return {value for value in constants if isinstance(value, str)}


# --- every document


@every_doc
def test_paths_tests_and_links_exist(doc: str) -> None:
    for path, test in PATH.findall(DOCS[doc]):
        assert (ROOT / path).exists(), path
        if test:
            assert f"\ndef {test}(" in text_of(ROOT / path), f"{path} has no {test}"
    folder = ROOT if doc == "CONTRIBUTING.md" else ROOT / "docs"
    for target in re.findall(r"\]\(([^)#:]+)\)", DOCS[doc]):
        assert (folder / target).exists(), target
    assert len(DOCS[doc].splitlines()) <= 150


@every_doc
def test_what_make_is_told_to_make_is_a_target(doc: str) -> None:
    lines = [line for block in fenced(DOCS[doc], "console") for line in block.splitlines()]
    spans = re.findall(r"`(make [^`]+)`", DOCS[doc])
    shown = {line.split()[1] for line in (*lines, *spans) if line.startswith("make ")}
    rules = re.findall(r"^(\w[\w -]*):", text_of(ROOT / "Makefile"), re.MULTILINE)
    assert shown <= {target for rule in rules for target in rule.split()}
    assert shown or doc != "CONTRIBUTING.md"


@every_doc
def test_constants_have_the_values_that_are_told(doc: str) -> None:
    for name, told in re.findall(r"`(_?[A-Z][A-Z_]+) = ([\d.]+)`", DOCS[doc]):
        where = [path for path in MODULES if f"\n{name} = " in text_of(path)]
        values = {ast.unparse(assigned(path)[name]) for path in where}
        assert told in values, f"{name} is {values}"


@every_doc
def test_code_parses_and_imports_what_there_is(doc: str) -> None:
    for code in fenced(DOCS[doc], "python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mqasearch"):
                path = ROOT / f"{(node.module or '').replace('.', '/')}.py"
                classes = {getattr(each, "name", None) for each in parsed(path).body}
                assert {each.name for each in node.names} <= classes | {*assigned(path)}, path


# --- docs/architecture.md


@cache
def rooms() -> frozenset[str]:
    return frozenset({room(path) for path in MODULES} - {"__init__"})


def room_imports() -> set[Edge]:
    found = set()
    for path in MODULES:
        for name, _ in imports(path):
            top, there = f"{name}.".split(".")[:2]
            if top == "mqasearch" and there in rooms():
                found.add((room(path), there))
    return {(here, there) for here, there in found if here not in (there, "__init__")}


def reduced(edges: set[Edge]) -> set[Edge]:
    """Without the edges that follow from others; there must be no cycle."""
    nodes = {end for edge in edges for end in edge}
    reach = set(edges)
    for via, one, other in product(nodes, nodes, nodes):  # Warshall: ``via`` is outermost
        if (one, via) in reach and (via, other) in reach:
            reach.add((one, other))
    assert not [node for node in nodes if (node, node) in reach]
    return {
        (one, other)
        for one, other in edges
        if not any((one, via) in edges and (via, other) in reach for via in nodes)
    }


def test_the_picture_shows_the_imports_between_rooms() -> None:
    (picture,) = fenced(DOCS["architecture.md"], "mermaid")
    labels = dict(re.findall(r'(\w+)\["([^"]+)"\]', picture))
    arrows = set(re.findall(r"(\w+) --> (\w+)", picture))
    nodes = {*labels, *(end for arrow in arrows for end in arrow)}
    node_of = {each: node for node in nodes for each in labels.get(node, node).split(", ")}
    assert node_of.keys() == rooms()
    edges = {(node_of[one], node_of[other]) for one, other in room_imports()}
    assert arrows == reduced({(one, other) for one, other in edges if one != other})


def test_the_table_has_every_room_on_its_floor() -> None:
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", DOCS["architecture.md"], re.MULTILINE)
    floors = {each: number for number, floor in enumerate(FLOORS) for each in floor}
    assert {each: int(floor) for floor, each in rows} == {each: floors[each] for each in rooms()}


def test_the_code_that_computes_scores_is_listed() -> None:
    identity = assigned(PACKAGE / "scoring/identity.py")
    section = DOCS["architecture.md"].partition("## What decides a score")[2]
    (listed,) = re.findall(r"^`mqasearch/.*`$", section.replace("`,\n`", "`, `"), re.MULTILINE)
    told = {path.removeprefix("mqasearch/") for path in re.findall(r"`([^`]+)`", listed)}
    assert told == strings(identity["COMPUTING"])
    assert "HEALING_CODE" in identity


# --- docs/merging.md


def laws() -> dict[int, str]:
    """Number → row of the table."""
    rows = re.findall(r"^\| L(\d+) \|(.*)\|$", DOCS["merging.md"], re.MULTILINE)
    return {int(number): row for number, row in rows}


def test_laws_are_numbered_and_each_is_stated_by_a_test() -> None:
    assert [*laws()] == list(range(1, len(laws()) + 1))
    assert all("::test_" in row for row in laws().values())
    assert {int(n) for n in re.findall(r"\(L(\d+)\)", DOCS["merging.md"])} <= laws().keys()


def test_laws_that_the_code_refers_to_exist() -> None:
    known = laws()
    for path in (*MODULES, *ROOT.glob("tests/**/*.py")):
        for numbers in re.findall(r"merging\.md, laws? (\d[\d, and]*)", text_of(path)):
            assert {int(n) for n in re.findall(r"\d+", numbers)} <= known.keys(), path
        for name, number in re.findall(r"^def (test_law_(\d+)_\w+)", text_of(path), re.MULTILINE):
            place = f"{path.relative_to(ROOT).as_posix()}::{name}"
            assert f"`{place}`" in known[int(number)], place


# --- docs/scores.md


def test_every_metric_of_ours_is_told_with_its_tasks() -> None:
    tasks = {
        "loglikelihood": "log-likelihoods",
        "multiple_choice": "multiple choice",
        "loglikelihood_rolling": "rolling",
    }
    having: dict[str, set[str]] = {}
    for file, name in (("metrics.py", "_OURS"), ("comparison.py", "COMPARISONS")):
        table = ast.literal_eval(assigned(PACKAGE / "tasks" / file)[name])
        for kind, metric in ((kind, each) for kind, names in table.items() for each in names):
            having.setdefault(metric, set()).add(tasks[kind])
    told = re.findall(r"^\| `(\w+)` \| .* \| ([^|]*) \|$", DOCS["scores.md"], re.MULTILINE)
    assert {metric: {*kinds.split(", ")} for metric, kinds in told} == having
    ways = ast.literal_eval(assigned(PACKAGE / "score.py")["HIGHER_IS_BETTER"])
    assert not any(ways[metric] for metric in having)


def test_the_shares_of_the_splits_are_told() -> None:
    rows = re.findall(r"^\| (\w+) \| (\d+) % \|", DOCS["scores.md"], re.MULTILINE)
    shares = ast.literal_eval(assigned(PACKAGE / "tasks/documents.py")["SHARES"])
    assert {split: int(share) for split, share in rows} == shares


# --- docs/extending.md


def section(title: str) -> str:
    text = DOCS["extending.md"].partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    assert text, title
    return text


def covered(title: str, path: str) -> bool:
    """Whether a list names the file, or a folder that it is in."""
    named = {name for name, _ in PATH.findall(section(title))}
    return any(path == name or (name.endswith("/") and path.startswith(name)) for name in named)


def members(registry: str, name: str) -> Iterator[tuple[str, ast.ClassDef]]:
    """File and class of each thing in a registry, by the registry's own imports."""
    tree, value = parsed(ROOT / registry), assigned(ROOT / registry)[name]
    used = {each.id for each in ast.walk(value) if isinstance(each, ast.Name)}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mqasearch"):
            if node.module == "mqasearch.registry":
                continue
            path = f"{(node.module or '').replace('.', '/')}.py"
            for alias in node.names:
                for each in parsed(ROOT / path).body if alias.name in used else ():
                    if isinstance(each, ast.ClassDef) and each.name == alias.name:
                        yield path, each


def own_name(kind: ast.ClassDef) -> str:
    """The value of the class attribute ``name``."""
    for node in kind.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id == "name":
            return str(ast.literal_eval(node.value))  # type: ignore[attr-defined]
    raise AssertionError(f"{kind.name} has no name")


REGISTRIES = (
    ("A selector", "mqasearch/selectors/selectors.py", "SELECTORS", 8),
    ("A family", "mqasearch/families/__init__.py", "_DOORS", 4),
    ("A merge", "mqasearch/merging/merges.py", "MERGES", 4),
    ("An export format", "mqasearch/formats/__init__.py", "FORMATS", 5),
)


@pytest.mark.parametrize(("title", "registry", "name", "least"), REGISTRIES)
def test_the_registry_and_all_that_it_holds_are_in_the_list(
    title: str, registry: str, name: str, least: int
) -> None:
    held = list(members(registry, name))
    assert len(held) >= least
    assert f"`{registry}`" in section(title)
    assert f"`{name}`" in section(title)
    assert all(covered(title, path) for path, _ in held)


def names_of(title: str, registry: str, name: str) -> set[str]:
    if title == "A family":
        return strings(assigned(ROOT / "tests/tiny.py")["MODEL_TYPES"])
    return {own_name(kind) for _, kind in members(registry, name)}


@pytest.mark.parametrize(
    ("title", "least", "but"),
    [
        ("A selector", 1, set()),
        ("A family", 3, set()),
        ("A merge", 2, set()),
        ("An export format", 1, {"gguf", "mlx"}),  # names of an engine and of a package too
    ],
)
def test_every_file_that_knows_the_existing_ones_by_name_is_in_the_list(
    title: str, least: int, but: set[str]
) -> None:
    (_, registry, name, _) = next(row for row in REGISTRIES if row[0] == title)
    names = names_of(title, registry, name) - but
    found = knowing(names, least, *ROOT.glob("engines/*.py"))
    assert found
    assert [path for path in found if not covered(title, path)] == []


def test_every_file_that_knows_metrics_by_name_is_in_the_list() -> None:
    ours = strings(assigned(PACKAGE / "tasks/comparison.py")["COMPARISONS"]) | strings(
        assigned(PACKAGE / "tasks/metrics.py")["_OURS"]
    )
    found = knowing(ours, 2)
    assert len(found) >= 4
    assert [path for path in found if not covered("A metric", path)] == []


@pytest.mark.parametrize(
    ("title", "base"),
    [
        ("A selector", "mqasearch/selectors/planned.py"),
        ("A family", "mqasearch/families/family.py"),
        ("A merge", "mqasearch/merging/merge.py"),
    ],
)
def test_a_skeleton_writes_all_that_its_base_asks_for(title: str, base: str) -> None:
    (code,) = fenced(section(title), "python")
    (written,) = [node for node in ast.parse(code).body if isinstance(node, ast.ClassDef)]
    bases = {ast.unparse(each) for each in written.bases}
    (kind,) = [
        node
        for node in parsed(ROOT / base).body
        if isinstance(node, ast.ClassDef) and node.name in bases
    ]
    asked = {
        node.name
        for node in kind.body
        if isinstance(node, ast.FunctionDef)
        and any("abstractmethod" in ast.unparse(each) for each in node.decorator_list)
    }
    assert asked
    assert asked <= {node.name for node in written.body if isinstance(node, ast.FunctionDef)}


def test_the_readme_leads_here() -> None:
    text = (ROOT / "README.md").read_text()
    assert {f"docs/{name}" for name in DOCS if name != "CONTRIBUTING.md"} <= {
        *re.findall(r"\]\((docs/[^)]+)\)", text)
    }
