"""Reads the text of a study file, which may be anything."""

from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from mqasearch.errors import SpecError

MAX_SPEC_BYTES = 1_000_000
"""A study file larger than this is refused before it is parsed."""


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice: otherwise the last value would win without a warning."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set[str]()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key.value!r} is given twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> object:
    """The content of a YAML file.

    Raises:
        SpecError: the file cannot be read, or is not YAML.
    """
    try:
        if path.stat().st_size > MAX_SPEC_BYTES:
            raise SpecError(str(path), [f"larger than {MAX_SPEC_BYTES:,} bytes, not a study file"])
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - a safe one
    except FileNotFoundError:
        near = get_close_matches(path.name, _neighbours(path), n=1)
        guess = "no such file" + (f"; did you mean {path.parent / near[0]}?" if near else "")
        raise SpecError(str(path), [guess]) from None
    except UnicodeDecodeError:
        raise SpecError(str(path), ["not a text file"]) from None
    except OSError as error:
        raise SpecError(str(path), [f"cannot be read: {error.strerror or error}"]) from None
    except yaml.YAMLError as error:
        raise SpecError(str(path), [_yaml_fault(error)]) from None
    except (ValueError, RecursionError) as error:  # an impossible date, endless digits or brackets
        said = "nested too deeply" if isinstance(error, RecursionError) else error
        raise SpecError(str(path), [f"not YAML: {said}"]) from None


def _neighbours(path: Path) -> list[str]:
    return [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []


def _yaml_fault(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}"
        if "given twice" in str(error.problem):
            return f"{place}: {error.problem}"
        return f"{place}: not YAML: {error.problem}"
    return f"not YAML: {' '.join(str(error).split())}"
