"""Files that are there whole or not at all: written under a temporary name beside the target, then renamed.

A crash, a full disk or Ctrl-C leaves the old file (or nothing), never half of a new one.
"""

import errno
import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recsys.errors import RecsysError, StorageError


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path (same folder, same suffix) to write to; on success it takes the place of `path`.

    Missing parent folders are made. On any failure the temporary file is removed and `path` is left as it was.

    Errors: `StorageError` when writing fails (full disk, no permission, `path` is a folder).
    """
    path = path.absolute()
    temporary = path.with_name(f".{uuid.uuid4().hex[:8]}.{path.name}")
    with storage_errors(path):
        if path.is_dir():
            raise StorageError(f"{path}: cannot write a file here, this is a folder")
        with _parents(path):
            try:
                yield temporary
                _flush(temporary)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)


def refuse_taken(path: Path, *, replace: bool = False) -> None:
    """Raise `StorageError` where `path` is a file or (without `replace`) a non-empty folder.

    Called before long work, so that its result is not refused when it is there.
    """
    if path.exists() and not path.is_dir():
        raise StorageError(f"{path}: cannot write a folder here, this is a file")
    if not replace and path.is_dir() and any(path.iterdir()):
        raise StorageError(f"{path}: exists and is not empty; choose another folder, or give --replace")
    _try_out(path)


def _try_out(path: Path) -> None:
    """Make and remove a folder where `path` will be, so that a place that cannot be written shows before the work."""
    place = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())
    with storage_errors(path):
        os.rmdir(tempfile.mkdtemp(prefix=".", dir=place))


@contextmanager
def atomic_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a new temporary folder beside `path` to fill; on success it takes the place of `path`.

    An existing empty folder is taken over; an existing non-empty one only where `replace` is set, as a whole.
    On any failure the temporary folder is removed and `path` is left as it was.

    Errors: `StorageError` when `path` is a file or a non-empty folder (without `replace`), or when writing fails.
    """
    path = path.absolute()
    temporary = path.with_name(f".{uuid.uuid4().hex[:8]}.{path.name}")
    with storage_errors(path):
        refuse_taken(path, replace=replace)
        with _parents(path):
            try:
                temporary.mkdir()
                yield temporary
                for file in sorted(temporary.rglob("*")):
                    if file.is_file():
                        _flush(file)
                _swap(temporary, path)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)


def _swap(new: Path, path: Path) -> None:
    """Put folder `new` where `path` is; on failure the old one comes back."""
    if not path.exists():
        os.rename(new, path)
        return
    old = path.with_name(f".{uuid.uuid4().hex[:8]}.old.{path.name}")
    os.rename(path, old)
    try:
        os.rename(new, path)
    except BaseException:
        os.rename(old, path)
        raise
    shutil.rmtree(old)


def _flush(file: Path) -> None:
    """Force the file to disk, so that a full disk shows up before the rename and not after it."""
    with file.open("rb") as handle:
        os.fsync(handle.fileno())


@contextmanager
def _parents(path: Path) -> Iterator[None]:
    """Make the missing parent folders; remove the made ones again on failure."""
    missing = [p for p in path.parents if not p.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for folder in missing:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        raise


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn a failed write into `StorageError`. Rust libraries (polars, safetensors) wrap the OS's error as text, and
    the Parquet writer, where it fails in the footer, says no more than "transport error"."""
    try:
        yield
    except RecsysError:
        raise
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror or error}; {_advice(error)}") from error
    except Exception as error:
        if not any(sign in str(error) for sign in ("(os error ", "transport error")):
            raise
        raise StorageError(f"{path}: cannot be written: {str(error).splitlines()[0]}; {_advice(error)}") from error


def _advice(error: Exception) -> str:
    """A full disk may be emptied; elsewhere only another place helps."""
    full = (
        "No space left" in str(error)
        or "transport error" in str(error)
        or getattr(error, "errno", None) == errno.ENOSPC
    )
    return "free space or choose another place" if full else "choose another place"


def sha256_of(file: Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
