"""The cache folder: complete or absent, whoever is killed, whoever else asks."""

import errno
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mqasearch.assets import CACHE_VARIABLE, build_once, cache_dir
from mqasearch.errors import AssetError

BUILDER = """
import sys, time
from pathlib import Path
from mqasearch.assets import build_once

folder, seconds = Path(sys.argv[1]), float(sys.argv[2])

def build(partial):
    (partial / "first").write_text("1")
    with (folder.parent / "builds").open("a") as log:
        log.write("built\\n")
    time.sleep(seconds)
    (partial / "second").write_text("2")

build_once(folder, build, "a folder")
assert (folder / "second").read_text() == "2"
"""


def start_builder(folder: Path, seconds: float) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", BUILDER, str(folder), str(seconds)])


def fill(partial: Path) -> None:
    (partial / "data").write_text("all of it")


def test_the_variable_decides_where_the_cache_is(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "here"))
    assert cache_dir() == tmp_path / "here"
    monkeypatch.delenv(CACHE_VARIABLE)
    assert cache_dir().name == "mqasearch"


def test_a_folder_is_built_once(tmp_path):
    folder = tmp_path / "deep" / "folder"
    assert build_once(folder, fill, "a folder") == folder
    build_once(folder, lambda partial: pytest.fail("built twice"), "a folder")
    assert [path.name for path in folder.iterdir()] == ["data"]


@pytest.mark.parametrize("fault", [KeyboardInterrupt, RuntimeError])
def test_an_interruption_leaves_nothing(tmp_path, fault):
    def interrupted(partial: Path) -> None:
        fill(partial)
        raise fault

    with pytest.raises(fault):
        build_once(tmp_path / "folder", interrupted, "a folder")
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []
    assert (build_once(tmp_path / "folder", fill, "a folder") / "data").is_file()


@pytest.mark.processes
def test_what_a_killed_process_left_is_cleared_away(tmp_path):
    folder = tmp_path / "folder"
    builder = start_builder(folder, 60)
    deadline = time.monotonic() + 30
    while not list(tmp_path.glob(".folder.partial-*/first")) and time.monotonic() < deadline:
        time.sleep(0.02)
    builder.send_signal(signal.SIGKILL)
    builder.wait()
    assert list(tmp_path.glob(".folder.partial-*/first"))
    assert not folder.exists()
    build_once(folder, fill, "a folder")
    assert [path.name for path in folder.iterdir()] == ["data"]
    assert not list(tmp_path.glob(".folder.partial-*"))


@pytest.mark.processes
def test_of_several_processes_one_builds_and_all_get_it(tmp_path):
    builders = [start_builder(tmp_path / "folder", 0.3) for _ in range(4)]
    assert [builder.wait(timeout=60) for builder in builders] == [0, 0, 0, 0]
    assert (tmp_path / "builds").read_text() == "built\n"


@pytest.mark.processes
def test_who_waits_for_another_process_says_so(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    builder = start_builder(tmp_path / "folder", 1)
    while not (tmp_path / "builds").exists():
        time.sleep(0.02)
    build_once(tmp_path / "folder", fill, "the sums")
    assert builder.wait() == 0
    assert "waiting for another process that is preparing the sums" in caplog.text


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, code):
    def fills_the_disk(partial: Path) -> None:
        fill(partial)
        raise OSError(code, os.strerror(code))

    with pytest.raises(
        AssetError, match=f"no space left in .* for the sums.*{CACHE_VARIABLE}"
    ) as e:
        build_once(tmp_path / "folder", fills_the_disk, "the sums")
    assert "\n" not in str(e.value)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(AssetError, match=f"cannot write the sums .*{CACHE_VARIABLE}") as e:
        build_once(tmp_path / "file" / "folder", fill, "the sums")
    assert "\n" not in str(e.value)


def test_a_complete_folder_needs_no_lock(tmp_path):
    """So a cache that was filled by somebody else may be read-only."""
    folder = tmp_path / "folder"
    folder.mkdir()
    build_once(folder, fill, "a folder")
    assert list(tmp_path.iterdir()) == [folder]
