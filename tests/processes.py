"""Processes that a test has started."""

import psutil  # type: ignore[import-untyped]


def below() -> set[psutil.Process]:
    """All processes below this one, but PostgreSQL's: it starts and ends some of its own accord."""
    return {each for each in psutil.Process().children(recursive=True) if not _is_postgres(each)}


def _is_postgres(process: psutil.Process) -> bool:
    try:
        return "postgres" in process.name()
    except psutil.NoSuchProcess:
        return False
