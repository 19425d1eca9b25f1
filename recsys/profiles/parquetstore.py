"""Profiles through time as a folder of Parquet files, for batch: one file to a write, whole or not at all.

One writer at a time; readers may read meanwhile. What was put twice (a resumed run) is read once.
"""

import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from recsys.data.files import atomic_file, storage_errors
from recsys.errors import StorageError
from recsys.profiles.edits import Edit
from recsys.profiles.versions import (
    EDITS,
    ERASURES,
    VERSION_KEY,
    VERSIONS,
    Ids,
    Version,
    as_versions,
    asking,
    edit_row,
    edits_frame,
    is_buried,
    keys_of,
    tombstones,
    version_rows,
    youngest,
)
from recsys.tables import Id


@dataclass(frozen=True)
class ParquetStore:
    """Implements `versions.ProfileStore`: folder/{versions,edits,erasures}/TIME-ID.parquet."""

    folder: Path

    def put(self, versions: Iterable[Version]) -> None:
        self._add("versions", VERSIONS, version_rows(versions))

    def versions(self, user_id: Id) -> list[Version]:
        return as_versions(self._read("versions", VERSIONS, users=keys_of([user_id])))

    def as_of(self, user_ids: Ids, at: int | pl.Series) -> pl.DataFrame:
        asked = asking(user_ids, at)
        latest = asked["at"].max()
        early = pl.lit(False) if latest is None else pl.col("as_of") <= latest
        return youngest(user_ids, at, self._read("versions", VERSIONS, early, users=asked["user"]))

    def edit(self, user_id: Id, edit: Edit) -> None:
        self._add("edits", EDITS, [edit_row(user_id, edit, time.time_ns())])

    def edits(self, user_ids: Ids | None = None, at: int | None = None) -> pl.DataFrame:
        users = None if user_ids is None else keys_of(user_ids)
        early = pl.lit(True) if at is None else pl.col("at") <= at
        return edits_frame(self._read("edits", EDITS, early, users=users), user_ids)

    def forget(self, user_ids: Ids) -> int:
        """Every file that holds one of them is written anew without them; what crashed writers left is removed."""
        users = keys_of(user_ids)
        removed = 0
        with self._errors("written"):
            for part, schema in (("versions", VERSIONS), ("edits", EDITS)):
                for left in (self.folder / part).glob(".*.parquet"):  # what a writer that was killed left behind
                    left.unlink()
                for file in self._files(part):
                    frame = _load(file, schema)
                    kept = frame.filter(~pl.col("user").is_in(users.implode()))
                    removed += len(frame) - len(kept)
                    if not len(kept):
                        file.unlink()
                    elif len(kept) < len(frame):
                        _save(kept, file)
        return removed

    def bury(self, user_ids: Ids, at: int) -> None:
        known = self._read("erasures", ERASURES)
        new = user_ids if not len(known) else _of(user_ids, ~is_buried(user_ids, known))
        salt = known["salt"][0] if len(known) else None
        self._add("erasures", ERASURES, tombstones(new, at, salt))

    def buried(self, user_ids: Ids) -> pl.Series:
        return is_buried(user_ids, self._read("erasures", ERASURES))

    def compact(self) -> None:
        """Bring the many files of many writes into one for versions and one for edits.

        Interrupted, it leaves rows twice, which are read once.
        """
        for part, schema in (("versions", VERSIONS), ("edits", EDITS)):
            files = self._files(part)
            if len(files) > 1:
                whole = self._read(part, schema)
                with self._errors("written"):
                    _save(whole, self._new(part))
                    for file in files:
                        file.unlink()

    def _add(self, part: str, schema: Mapping[str, Any], rows: list[dict[str, Any]]) -> None:
        if rows:
            with self._errors("written"):
                _save(pl.DataFrame(rows, schema=schema), self._new(part))

    def _new(self, part: str) -> Path:
        return self.folder / part / f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.parquet"

    def _files(self, part: str) -> list[Path]:
        if self.folder.exists() and not self.folder.is_dir():
            raise StorageError(f"{self.folder}: is a file, and no folder of profiles: choose another place")
        return sorted((self.folder / part).glob("[!.]*.parquet"))

    def _read(
        self, part: str, schema: Mapping[str, Any], where: pl.Expr | None = None, *, users: pl.Series | None = None
    ) -> pl.DataFrame:
        """The rows of one part, each once, where `where` holds, of `users` (keys) or of everybody."""
        with self._errors("read"):
            files = self._files(part)
            if not files:
                return pl.DataFrame(schema=schema)
            lazy = pl.scan_parquet(files, glob=False)
            for name, dtype in schema.items():
                found = lazy.collect_schema().get(name)
                if found != dtype:
                    raise StorageError(f"{self.folder / part}: column '{name}' is {found}, so it is no store's: mend")
            if where is not None:
                lazy = lazy.filter(where)
            if users is not None:
                lazy = lazy.join(users.unique().to_frame().lazy(), on="user", how="semi")
            rows = lazy.select(list(schema)).collect()
        if part == "versions":
            return rows.sort("written").unique(list(VERSION_KEY), keep="last", maintain_order=True)
        return rows.unique(maintain_order=True)

    @contextmanager
    def _errors(self, done: str) -> Iterator[None]:
        with storage_errors(self.folder):
            try:
                yield
            except (OSError, pl.exceptions.PolarsError) as error:
                if done == "written" and isinstance(error, OSError):
                    raise
                raise StorageError(
                    f"{self.folder}: the profiles there cannot be {done}: {str(error).splitlines()[0]}; remove what is "
                    "no file of theirs, or restore a copy"
                ) from error


def _load(file: Path, schema: Mapping[str, Any]) -> pl.DataFrame:
    return pl.read_parquet(file).select(pl.col(name).cast(dtype) for name, dtype in schema.items())


def _save(frame: pl.DataFrame, file: Path) -> None:
    with atomic_file(file) as temporary:
        frame.write_parquet(temporary)


def _of(user_ids: Ids, mask: pl.Series) -> Ids:
    """Those of some ids for which the mask holds."""
    if isinstance(user_ids, pl.Series):
        return user_ids.filter(mask)
    return [user_id for user_id, wanted in zip(user_ids, mask, strict=True) if wanted]
