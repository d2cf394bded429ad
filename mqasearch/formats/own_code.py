"""The modeling code of compact checkpoints, imported from this package instead of their folder.

A folder's own copy is for programs that do not have mqasearch. Here the same templates are
imported under names of our own, so that no code of the folder runs. They are not registered with
transformers' Auto classes: transformers would then use them even if the user asked for the folder's
own code.
"""

import importlib.util
import sys
from collections.abc import Mapping
from importlib.abc import SourceLoader
from importlib.machinery import ModuleSpec
from types import ModuleType

from transformers import PreTrainedConfig, PreTrainedModel

from mqasearch.formats.hf import CompactHF

_PREFIX = "mqasearch_modeling_"


class _Templates(SourceLoader):
    """Loads a module from text that is in memory."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self._texts = texts

    def get_filename(self, fullname: str) -> str:
        return f"<{fullname}>"

    def get_data(self, path: str) -> bytes:
        name = path[1:-1].rpartition(".")[2] if isinstance(path, str) else ""
        if name not in self._texts:
            raise OSError(f"there is no {path}")  # Python also asks for a compiled copy
        return self._texts[name].encode()


def compact_classes(model_type: str) -> tuple[type[PreTrainedConfig], type[PreTrainedModel]]:
    """Config class and model class of compact checkpoints of models of that type.

    Args:
        model_type: the original's model type.
    """
    package = f"{_PREFIX}{model_type}"
    if package not in sys.modules:
        _import_package(package, CompactHF().code(model_type))
    module = sys.modules[f"{package}.modeling_mqa"]
    return module.MqaConfig, module.MqaForCausalLM


def _import_package(package: str, code: Mapping[str, str]) -> None:
    """Import a package whose modules are these files, by name."""
    loader = _Templates({name.removesuffix(".py"): text for name, text in code.items()})
    parent = ModuleType(package)
    parent.__path__ = []
    parent.__spec__ = ModuleSpec(package, None, is_package=True)
    modules = {package: parent}
    sys.modules[package] = parent
    try:
        # modeling_mqa comes last: it imports the others, and Python cannot find them by path
        for name in sorted(code, key=lambda name: name == "modeling_mqa.py"):
            full = f"{package}.{name.removesuffix('.py')}"
            spec = importlib.util.spec_from_loader(full, loader)
            assert spec is not None
            module = importlib.util.module_from_spec(spec)
            modules[full] = sys.modules[full] = module
            loader.exec_module(module)
    except BaseException:
        for name in modules:
            sys.modules.pop(name, None)
        raise
