"""Build a converted checkpoint again from the original, and report any differences."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mqasearch.checkpoint.convert import check_request, convert_checkpoint
from mqasearch.checkpoint.healed_mask import heal_for_mask
from mqasearch.checkpoint.original import load_original
from mqasearch.checkpoint.reproduce_json import FILE, described, differing_inputs, read_record
from mqasearch.errors import UserError
from mqasearch.files import check_output, temporary_folder
from mqasearch.formats import Options
from mqasearch.healing import Watch
from mqasearch.merging import Place, threads
from mqasearch.models import LoadedModel
from mqasearch.scoring import calibrate_for_mask

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reproduction:
    """The result of building a checkpoint again.

    Attributes:
        files: names of the files that were compared.
        changed: file that has changed since it was written → how; found before building.
        differing: files whose new build differs from what was written.
        inputs: inputs that differ this time, one line each; empty if no file differs or nothing was
            built.
    """

    files: tuple[str, ...]
    changed: Mapping[str, str]
    differing: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()

    @property
    def identical(self) -> bool:
        """Whether no file has changed since it was written, and all were rebuilt bit for bit."""
        return not self.changed and not self.differing


def reproduce(
    path: Path,
    *,
    model: str | None = None,
    output_dir: Path | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
    progress: Callable[[int, int], None] | None = None,
    watch_heal: Watch | None = None,
) -> Reproduction:
    """Build a converted folder, or one file of it, again, and compare digests.

    The calibration is computed again too, with as many threads as the first time, since their
    number decides how sums round. If a file has changed since it was written, nothing is built,
    unless ``output_dir`` is given.

    Args:
        path: a converted folder, or a file in one.
        model: the original's present place; None = the place that the folder names.
        output_dir: a new folder for the build, which is kept; None = the build is made beside
            ``path`` and removed.
        device: the device that the calibration runs on; None = the same as the first time.
        trust_remote_code: run code that comes with the original.
        progress: called with (bytes written, bytes in all) after every tensor.
        watch_heal: called after every step of a healing.

    Raises:
        UserError: ``path`` is no conversion of ours, or has no valid ``reproduce.json``; the
            original has other weights than were converted; there is no room on the disk.
        ModelError, UnknownNameError, AssetError: as in ``load_original``.
    """
    folder = path if path.is_dir() or not path.exists() else path.parent
    record = read_record(folder)
    names = _compared(path, folder, record)
    changed = _changed(folder, names, record)
    if changed and output_dir is None:
        return Reproduction(names, changed)
    if output_dir is not None:
        check_output(output_dir, 0)
    with _place(folder, output_dir) as built, threads(record["computed"]["threads"]):
        loaded = _source(record, model, device, trust_remote_code=trust_remote_code)
        _build(record, loaded, built, progress, watch_heal)
        now = read_record(built)
    differing = tuple(name for name in names if record["files"][name] != now["files"].get(name))
    inputs = differing_inputs(record, now) if differing else []
    return Reproduction(names, changed, differing, tuple(inputs))


def _compared(path: Path, folder: Path, record: Mapping[str, Any]) -> tuple[str, ...]:
    if path == folder:
        return tuple(record["files"])
    if path.name not in record["files"]:
        known = ", ".join(record["files"])
        raise UserError(f"{path} is not of the checkpoint beside it, whose {FILE} names {known}")
    return (path.name,)


def _changed(folder: Path, names: tuple[str, ...], record: Mapping[str, Any]) -> dict[str, str]:
    """File that has changed since it was written → how."""
    changed = {}
    for name in names:
        path, written = folder / name, record["files"][name]
        if not path.is_file():
            changed[name] = "is missing"
        elif path.stat().st_size != written["bytes"]:
            changed[name] = f"has {path.stat().st_size:,} bytes, {written['bytes']:,} were written"
        elif described(path) != written:
            changed[name] = "has other bytes than were written"
    return changed


@contextlib.contextmanager
def _place(folder: Path, output_dir: Path | None) -> Iterator[Path]:
    """The folder to build in."""
    if output_dir is not None:
        yield output_dir
        return
    with temporary_folder(folder) as temporary:
        yield temporary / "built"


def _source(
    record: Mapping[str, Any], model: str | None, device: str | None, *, trust_remote_code: bool
) -> LoadedModel:
    """The original.

    Raises:
        ModelError, UnknownNameError, AssetError: as in ``load_original``.
        UserError: it has other weights than were converted.
    """
    source, mask = record["source"], record["mask"]
    places = record["computed"]["calibration"].values()
    loaded = load_original(
        {"id": source["id"], "revision": source.get("commit") or source.get("revision")},
        moved_to=model,
        device=device or next((place["device"] for place in places), "cpu"),
        dtype=mask["dtype"],
        trust_remote_code=trust_remote_code,
    )
    known, found = source["fingerprint"], loaded.fingerprint
    same_method = known.partition(":")[0] == found.partition(":")[0] or ":" not in known + found
    if known != found and same_method:
        was = record["versions"].get("transformers")
        raise UserError(
            f"{loaded.name} is not what was converted: its weights or its config have changed "
            f"(fingerprint {known[:14]} then, by transformers {was}, {found[:14]} now); "
            "say where the original is: --model"
        )
    return loaded


def _build(
    record: Mapping[str, Any],
    loaded: LoadedModel,
    folder: Path,
    progress: Callable[[int, int], None] | None,
    watch_heal: Watch | None,
) -> None:
    options = Options(outtype=record["outtype"], max_shard_bytes=record["max_shard_bytes"])
    mask, format = record["mask"], record["format"]
    check_request(mask, loaded, folder, format, options)
    places = {part: Place(**row) for part, row in record["computed"]["calibration"].items()}
    statistics = calibrate_for_mask(loaded, mask, again=places)
    healed = heal_for_mask(loaded, mask, statistics, again=places, watch=watch_heal)
    convert_checkpoint(
        mask,
        loaded,
        folder,
        format=format,
        options=options,
        statistics=statistics,
        healed=healed,
        progress=progress,
    )
