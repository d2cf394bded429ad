"""Processes that a test has started."""

import psutil  # type: ignore[import-untyped]


def below() -> set[psutil.Process]:
    """All processes below this one except PostgreSQL's, which starts and ends some by itself."""
    return {each for each in psutil.Process().children(recursive=True) if not _is_postgres(each)}


def _is_postgres(process: psutil.Process) -> bool:
    try:
        return "postgres" in process.name()
    except psutil.NoSuchProcess:
        return False
