"""Switch transformers' progress bars on or off within a block."""

import contextlib
from collections.abc import Iterator

from transformers.utils.logging import (
    disable_progress_bar,
    enable_progress_bar,
    is_progress_bar_enabled,
)


@contextlib.contextmanager
def progress_bars(shown: bool) -> Iterator[None]:
    """Show transformers' progress bars only if ``shown`` is true and they are not switched off."""
    before = is_progress_bar_enabled()
    if not shown:
        disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if before:
            enable_progress_bar()  # type: ignore[no-untyped-call]
