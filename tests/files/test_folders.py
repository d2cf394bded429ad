"""An output folder is there whole or not at all."""

import errno
import os
from pathlib import Path

import pytest
from filelock import FileLock

from mqasearch.errors import UserError
from mqasearch.files.folders import check_output, whole_folder


def fill(folder: Path) -> None:
    (folder / "inner").mkdir()
    (folder / "inner" / "file").write_text("content")


def test_it_appears_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"
    with whole_folder(out) as folder:
        fill(folder)
        assert not out.exists()
    assert (out / "inner" / "file").read_text() == "content"
    assert [path.name for path in out.iterdir()] == ["inner"]
    assert [path.name for path in out.parent.iterdir()] == ["b"]


def test_it_has_the_rights_of_any_new_folder(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    with whole_folder(tmp_path / "out"):
        pass
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_it_may_replace_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    check_output(tmp_path / "out", 0)
    with whole_folder(tmp_path / "out") as folder:
        fill(folder)
    assert (tmp_path / "out" / "inner").is_dir()


def test_what_is_there_already_is_never_touched(tmp_path: Path) -> None:
    fill(tmp_path)
    with pytest.raises(UserError, match="exists already"):
        check_output(tmp_path, 0)
    with pytest.raises(UserError, match="exists already"):
        check_output(tmp_path / "inner" / "file", 0)
    with pytest.raises(UserError, match="cannot be written"), whole_folder(tmp_path / "inner"):
        pass
    assert (tmp_path / "inner" / "file").read_text() == "content"


def fail_within(out: Path, error: BaseException) -> None:
    with whole_folder(out) as folder:
        fill(folder)
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_nothing(error: type[BaseException], tmp_path: Path) -> None:
    with pytest.raises(error):
        fail_within(tmp_path / "out", error())
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(UserError, match="no space left on the disk") as raised:
        fail_within(tmp_path / "out", full)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_is_removed_but_not_what_one_at_work_has(
    tmp_path: Path,
) -> None:
    abandoned, at_work = tmp_path / ".out.partial-1", tmp_path / ".out.partial-2"
    other = tmp_path / ".another.partial-1"
    for folder in (abandoned, at_work, other):
        folder.mkdir()
        fill(folder)
    with FileLock(tmp_path / ".out.partial-2.lock"):
        with whole_folder(tmp_path / "out") as folder:
            fill(folder)
        assert not abandoned.exists()
        assert (at_work / "inner" / "file").exists()
        assert other.exists()


def test_a_finished_folder_is_not_removed_just_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process that asks for the same folder may look at any moment."""
    rename = Path.rename

    def looked_at(self: Path, target: Path) -> Path:
        with pytest.raises(ValueError, match="enough"), whole_folder(tmp_path / "out"):
            raise ValueError("enough")
        return rename(self, target)

    with whole_folder(tmp_path / "out") as folder:
        fill(folder)
        monkeypatch.setattr(Path, "rename", looked_at)
    assert (tmp_path / "out" / "inner" / "file").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_room_is_asked_of_the_nearest_folder_that_exists(tmp_path: Path) -> None:
    check_output(tmp_path / "not" / "yet" / "there", 1)
    with pytest.raises(UserError, match=r"1000000\.00 GB are needed"):
        check_output(tmp_path / "not" / "yet" / "there", 10**15)


def test_a_place_below_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    for out in ("file/a", "file/a/b", "broken/a"):
        with pytest.raises(UserError, match="is a file, not a folder") as raised:
            check_output(tmp_path / out, 0)
        assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match="cannot be written"), whole_folder(tmp_path / "file/a/b"):
        pass
    assert (tmp_path / "file").read_text() == "content"


def test_a_name_that_no_folder_can_have_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written"):
        check_output(tmp_path / ("x" * 300) / "y", 0)


@pytest.mark.parametrize("target", ["nowhere", "empty"])
def test_a_link_is_not_replaced(target: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / target)
    with pytest.raises(UserError, match="exists already"):
        check_output(tmp_path / "link", 0)


def test_a_folder_without_rights_is_found_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mqasearch.files.folders.os.access", lambda *_: False)  # root may anything
    with pytest.raises(UserError, match="cannot be written to"):
        check_output(tmp_path / "a" / "b", 0)
