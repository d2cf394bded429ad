"""The command line in this process; a study in a fresh PostgreSQL."""

import contextlib
import os
from pathlib import Path

import pytest
from command_line import run_here
from launching import STUDY, Mqasearch

from mqasearch.record import open_storage
from mqasearch.spec import parse_spec
from mqasearch.worker import create

# Ray reads these once, when it is imported. Its servers then listen on loopback only, and nothing
# is written into, or sent from, the home folder.
os.environ |= {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_TOKEN": "0" * 64,
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPTUNA_STORAGE", raising=False)
    return tmp_path


@pytest.fixture
def mqasearch(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], folder: Path
) -> Mqasearch:
    """Runs a command line as the console script would: exit code, stdout, stderr."""

    def run(line: str) -> tuple[int, str, str]:
        code = run_here(line, monkeypatch)
        out, err = capfd.readouterr()
        return code, out, err

    return run


@pytest.fixture
def study_url(postgres_url: str) -> str:
    """A PostgreSQL with the study ``demo`` in it; its URL has a password, which must not leak."""
    url = postgres_url.replace("postgres@", "postgres:canary@")
    with contextlib.closing(open_storage(url)) as storage:
        create(storage, parse_spec(STUDY | {"model": "fake:8:0.05"}, "study.yaml"))
    return url
