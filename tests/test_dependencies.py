"""Every dependency has bounds that were tested, and every package that is imported is one."""

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from test_layers import imports

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mqasearch"
DRIVERS = PACKAGE / "engines/drivers"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OPTIONAL: dict[str, list[str]] = PROJECT["optional-dependencies"]


def requirements(lines: Iterable[str]) -> dict[str, Requirement]:
    """By name, without the extras of the project itself."""
    found = {canonicalize_name(each.name): each for each in map(Requirement, lines)}
    return {name: each for name, each in found.items() if name != PROJECT["name"]}


RUNTIME = requirements(PROJECT["dependencies"])
EXTRAS = requirements(line for name in OPTIONAL if name != "dev" for line in OPTIONAL[name])
DIRECT = RUNTIME | EXTRAS | requirements(OPTIONAL["dev"])


@cache
def pins(file: str) -> dict[str, Version]:
    """What a constraint file pins: every line that is no comment is NAME==VERSION."""
    lines = [line.partition("#")[0].strip() for line in (ROOT / file).read_text().splitlines()]
    named = [line.split("==") for line in lines if line]
    found = {canonicalize_name(name): Version(version) for name, version in named}
    assert len(found) == len(named), f"{file} names a package twice"
    return found


def bounds(requirement: Requirement) -> tuple[Version, Version]:
    """The first release that is admitted and the first above that is not."""
    sides = {each.operator: Version(each.version) for each in requirement.specifier}
    assert sides.keys() == {">=", "<"}, requirement
    return sides[">="], sides["<"]


@pytest.mark.parametrize("name", sorted(DIRECT))
def test_every_dependency_has_both_bounds_and_the_pins_lie_within(name: str) -> None:
    oldest, above = bounds(DIRECT[name])
    assert oldest <= pins("constraints.txt")[name] < above
    assert pins("constraints-oldest.txt")[name] == oldest


def test_a_package_that_is_declared_twice_has_the_same_bounds() -> None:
    lines = [*PROJECT["dependencies"], *(line for extra in OPTIONAL.values() for line in extra)]
    twice = [each for each in map(Requirement, lines) if each.name != PROJECT["name"]]
    assert all(each.specifier == DIRECT[canonicalize_name(each.name)].specifier for each in twice)


def test_the_oldest_are_those_that_are_declared_and_no_other() -> None:
    assert pins("constraints-oldest.txt").keys() == DIRECT.keys()


def test_no_upper_bound_admits_the_major_after_the_one_that_was_tested() -> None:
    """Of a package whose versions begin with 0, the minor."""
    for name, requirement in DIRECT.items():
        tested, (_, above) = pins("constraints.txt")[name], bounds(requirement)
        after = Version(f"0.{tested.minor + 1}") if not tested.major else None
        assert above <= (after or Version(f"{tested.major + 1}")), requirement


def test_torch_is_the_one_that_the_text_names() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text() + (ROOT / "README.md").read_text()
    (told,) = {Version(each) for each in re.findall(r"torch (\d+(?:\.\d+)+)", text)}
    oldest, above = bounds(DIRECT["torch"])
    assert oldest == told
    assert above <= Version(f"{told.major}.{told.minor + 1}")
    for file in ("constraints.txt", "constraints-oldest.txt"):
        assert pins(file)["torch"] == told
    for file in sorted((ROOT / "engines").glob("*.txt")):
        for pinned in re.findall(r"^torch==(\S+)", file.read_text(), re.MULTILINE):
            assert Version(Version(pinned).public) == told, file


@pytest.mark.parametrize("end", ["oldest", "newest"])
def test_make_bounds_installs_as_the_readme_says_with_constraints_for_the_oldest_alone(
    end: str,
) -> None:
    assert "`pip install .`" in (ROOT / "README.md").read_text()
    held = "--constraint constraints-oldest.txt" if end == "oldest" else ""
    told = {name: os.environ[name] for name in os.environ.keys() - {"MAKEFLAGS", "CONSTRAINTS"}}
    make = ["make", "--dry-run", f"bounds-{end}"]
    done = subprocess.run(make, cwd=ROOT, env=told, capture_output=True, text=True, check=True)
    installing = re.findall(r"/bin/pip install --quiet(.*) (\S+)$", done.stdout, re.MULTILINE)
    installing = [(options.strip(), what) for options, what in installing]
    assert installing == [(held, "."), (held, "'.[dev]'")]


# --- what is imported


def foreign(paths: Iterable[Path]) -> set[str]:
    """The packages that files import, by their top names: neither Python's own nor this one."""
    names = {name.partition(".")[0] for path in paths for name, _ in imports(path)}
    return names - sys.stdlib_module_names - {PROJECT["name"]}


def distributions(names: set[str]) -> dict[str, set[str]]:
    """Import name → the distributions that bring it; its own name where it is not installed."""
    installed = packages_distributions()
    return {name: {*map(canonicalize_name, installed.get(name, [name]))} for name in names}


def own_files() -> list[Path]:
    """Without the drivers, which the Python of an engine runs."""
    return [path for path in sorted(PACKAGE.rglob("*.py")) if DRIVERS not in path.parents]


def test_what_the_package_imports_is_declared_and_what_is_declared_is_imported() -> None:
    declared = {**RUNTIME, **EXTRAS}
    found = distributions(foreign(own_files()))
    assert {name: dists for name, dists in found.items() if not dists & declared.keys()} == {}
    assert declared.keys() - set().union(*found.values()) == set()


def test_what_a_driver_imports_is_in_the_environment_of_its_engine() -> None:
    files = sorted(DRIVERS.glob("*.py"))
    assert files
    listed = "".join(path.read_text() for path in sorted((ROOT / "engines").glob("*.txt")))
    engines = {
        canonicalize_name(each) for each in re.findall(r"^([\w.-]+)==", listed, re.MULTILINE)
    }
    for name in foreign(files) - {path.stem for path in files}:
        assert any(each.startswith(canonicalize_name(name)) for each in engines), name
