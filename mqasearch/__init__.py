"""Find which attention layers of a pretrained transformer can become multi-query attention."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mqasearch.api import Applied, Checkpoint, apply, convert, load

__version__ = "0.1.0"

__all__ = ["Applied", "Checkpoint", "__version__", "apply", "convert", "load"]


def __getattr__(name: str) -> object:
    """What Python users call, imported when it is first asked for: torch takes seconds."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mqasearch import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
