"""Files that are there whole or not at all."""

import errno
import os
from contextlib import AbstractContextManager
from pathlib import Path

import polars as pl
import pytest

from recsys.data.files import atomic_file, atomic_folder
from recsys.errors import DataError, StorageError


def full_disk() -> OSError:
    return OSError(errno.ENOSPC, "No space left on device")


def stop_halfway(writer: AbstractContextManager[Path], name: str = "", error: BaseException | None = None) -> None:
    with writer as temporary:
        (temporary / name if name else temporary).write_text("half")
        raise error or full_disk()


def test_a_written_file_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b.txt"
    for text in ("first", "second"):
        with atomic_file(target) as temporary:
            assert temporary.parent == target.parent
            assert temporary.suffix == ".txt"
            temporary.write_text(text)
        assert target.read_text() == text
    assert os.listdir(target.parent) == ["b.txt"]


def test_a_full_disk_in_mid_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "b.txt"
    target.write_text("old")
    with pytest.raises(StorageError, match=r"b\.txt: cannot be written: No space left on device; free space"):
        stop_halfway(atomic_file(target))
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["b.txt"]


def test_a_failed_write_removes_the_parent_folders_that_it_made(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        stop_halfway(atomic_file(tmp_path / "new" / "deep" / "b.txt"))
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_rust_library_on_a_full_disk_is_a_storage_error_too(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No space left on device") as caught, atomic_file(tmp_path / "t.parquet"):
        pl.DataFrame({"a": range(100)}).write_parquet("/dev/full")
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("error", [ValueError("mine"), DataError("theirs"), KeyboardInterrupt()])
def test_other_errors_pass_unchanged_and_leave_nothing(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:
        stop_halfway(atomic_folder(tmp_path / "f"), "x", error)
    assert caught.value is error
    assert os.listdir(tmp_path) == []


def test_a_folder_cannot_be_replaced_by_a_file(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="this is a folder"), atomic_file(tmp_path):
        pass


def test_a_filled_folder_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "f"
    with atomic_folder(target) as temporary:
        (temporary / "sub").mkdir()
        (temporary / "sub" / "x").write_text("1")
        assert not target.exists()
    assert (target / "sub" / "x").read_text() == "1"
    assert os.listdir(target.parent) == ["f"]


def test_an_empty_folder_is_taken_over_and_a_full_one_refused(tmp_path: Path) -> None:
    target = tmp_path / "f"
    target.mkdir()
    with atomic_folder(target) as temporary:
        (temporary / "x").write_text("1")
    with pytest.raises(StorageError, match="exists and is not empty"), atomic_folder(target):
        pytest.fail("the body ran")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="this is a file"), atomic_folder(tmp_path / "file", replace=True):
        pytest.fail("the body ran")
    assert (target / "x").read_text() == "1"


def test_replacing_a_folder_leaves_nothing_of_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "f"
    for name in ("old", "new"):
        with atomic_folder(target, replace=True) as temporary:
            (temporary / name).write_text(name)
    assert os.listdir(target) == ["new"]
    assert os.listdir(tmp_path) == ["f"]


def test_a_full_disk_keeps_the_folder_that_was_to_be_replaced(tmp_path: Path) -> None:
    target = tmp_path / "f"
    target.mkdir()
    (target / "x").write_text("old")
    with pytest.raises(StorageError, match="No space left"):
        stop_halfway(atomic_folder(target, replace=True), "x")
    assert (target / "x").read_text() == "old"
    assert os.listdir(tmp_path) == ["f"]


def test_the_old_folder_comes_back_when_the_last_rename_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "f"
    target.mkdir()
    (target / "x").write_text("old")
    rename, calls = os.rename, []

    def failing(source: Path, to: Path) -> None:
        calls.append(to)
        if len(calls) == 2:
            raise full_disk()
        rename(source, to)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(StorageError), atomic_folder(target, replace=True) as temporary:
        (temporary / "x").write_text("new")
    assert (target / "x").read_text() == "old"
    assert os.listdir(tmp_path) == ["f"]
