"""Opening a dataset folder: which files, which columns, in the public names; nothing is judged row by row yet.

A folder holds `interactions.parquet|csv` and `items.parquet|csv`, and may hold `users.parquet|csv` (the users'
segments; not read where nothing asks for them) and a `dataset.toml`:

    name = "shop"
    licence = "our own"
    ignore = ["stock"]            # columns of items to leave out
    [columns]                     # public name = the name in the files (or a list of names to try)
    user_id = "uid"
    item_id = ["movie_id", "id"]
    segment = "country"           # of interactions or of users
    [lists]                       # attribute = the separator of its values ("|" needs no mention)
    genres = " "
"""

import csv
import dataclasses
import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import polars as pl
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from recsys.errors import DataError

PublicColumn = Literal["user_id", "item_id", "timestamp", "position", "rating", "weight", "event", "segment", "title"]
INTERACTIONS: tuple[str, ...] = ("user_id", "item_id", "timestamp", "position", "rating", "weight", "event", "segment")
USERS: tuple[str, ...] = ("user_id", "segment")
FORMATS = (".parquet", ".csv")
# What polars raises over a file that is damaged or of another kind; a panic is how its Parquet reader meets nonsense.
UNREADABLE = (
    pl.exceptions.ComputeError,
    pl.exceptions.InvalidOperationError,
    pl.exceptions.NoDataError,
    pl.exceptions.PanicException,
    OSError,
)


class DatasetFile(BaseModel):
    """The content of `dataset.toml`; unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str | None = None
    licence: str = ""
    origin: str = ""
    ignore: list[str] = Field(default_factory=list)
    columns: dict[PublicColumn, str | list[str]] = Field(default_factory=dict)
    lists: dict[str, str] = Field(default_factory=dict)


@dataclass(frozen=True)
class RawTable:
    """One table as it lies in its file, under public column names.

    file    : the name to use in messages
    frame   : lazy; a CSV's columns are all String
    untyped : True where the file has no types of its own (CSV)
    path    : where it lies; None for a table in memory
    separator : between the fields of a text file
    """

    file: str
    frame: pl.LazyFrame
    untyped: bool
    path: Path | None = None
    separator: str = ","

    def schema(self) -> pl.Schema:
        """Column names and types. Errors: `DataError` where the file cannot be read."""
        try:
            return self.frame.collect_schema()
        except UNREADABLE as error:
            raise self._unreadable(error) from error

    def collect(self, frame: pl.LazyFrame) -> pl.DataFrame:
        """Run a query over this table. Errors: `DataError` naming the row where the file cannot be decoded."""
        try:
            return frame.collect(engine="streaming")
        except UNREADABLE as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: BaseException) -> DataError:
        said = str(error).strip().splitlines()[0]
        if isinstance(error, pl.exceptions.NoDataError):
            return DataError(f"{self.file}: the file is empty; it needs a header line")
        if self.untyped and self.path is not None:
            said = _not_utf8(self.path, self.separator) or _too_wide(self.path, self.separator) or said
            return DataError(f"{self.file}, {said}")
        return DataError(f"{self.file}: cannot be read: {said}")


@dataclass(frozen=True)
class Source:
    """A dataset before any row is judged. `users` is there where the segments are to be had from it."""

    name: str
    interactions: RawTable
    items: RawTable
    lists: Mapping[str, str]
    licence: str = ""
    notes: tuple[str, ...] = ()
    users: RawTable | None = None


def open_folder(folder: Path) -> Source:
    """Find the files of a dataset folder and give their columns the public names.

    Errors: `DataError` for a missing folder or file, a wrong `dataset.toml`, or a file that cannot be opened.
    """
    if not folder.is_dir() or not os.access(folder, os.R_OK | os.X_OK):
        raise DataError(
            f"{folder}: no such folder, or no permission to read it; a dataset is a folder of interactions and items"
        )
    meta = read_toml(folder)
    interactions = _renamed(open_table(_find(folder, "interactions")), meta.columns)
    # A segment is the users': an attribute of the items that is called so, or as the mapped column, stays what it is.
    of_items = {public: theirs for public, theirs in meta.columns.items() if public != "segment"}
    items = _renamed(open_table(_find(folder, "items")), of_items)
    users = None if "segment" in interactions.schema() else _users(folder, meta)
    for public, theirs in meta.columns.items():
        places = [interactions, users] if public == "segment" else [interactions, items, users]
        if not any(public in table.schema() for table in places if table):
            raise DataError(f"{folder / 'dataset.toml'}: [columns] {public} = {theirs!r}: no file has such a column")
    for attribute in meta.lists:
        if attribute not in items.schema():
            raise DataError(f"{folder / 'dataset.toml'}: [lists] {attribute}: {items.file} has no such column")
    items, ignored = _without_ignored(items, meta.ignore, folder / "dataset.toml")
    used = {interactions.file, items.file, *([users.file] if users else [])}
    extra = sorted(f.name for f in folder.iterdir() if f.suffix in FORMATS and f.name not in used)
    notes = [f"ignored files: {', '.join(extra)}"] if extra else []
    notes += [*surplus_notes(interactions, users), *ignored]
    name = meta.name or folder.resolve().name
    return Source(name, interactions, items, meta.lists, meta.licence, tuple(notes), users)


def surplus_notes(interactions: RawTable, users: RawTable | None) -> list[str]:
    """What is said of columns that nothing reads."""
    surplus = {
        table.file: [column for column in table.schema() if column not in public]
        for table, public in ((interactions, INTERACTIONS), (users, USERS))
        if table
    }
    return [f"ignored columns of {file}: {', '.join(columns)}" for file, columns in surplus.items() if columns]


def read_toml(folder: Path) -> DatasetFile:
    """The folder's `dataset.toml`; defaults where it has none. Errors: `DataError` naming the field."""
    path = folder / "dataset.toml"
    if not path.exists():
        return DatasetFile()
    try:
        return DatasetFile.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{path}: not valid TOML: {error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not valid UTF-8 at byte {error.start}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(p) for p in first["loc"] if p != "[key]")
        known = f"; [columns] may name {', '.join(get_args(PublicColumn))}" if where.startswith("columns") else ""
        raise DataError(f"{path}: field '{where}': {first['msg']}{known}") from error


def write_toml(path: Path, **fields: str) -> None:
    """Write the non-empty fields of a dataset.toml (a JSON string is a TOML string)."""
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in fields.items() if value]
    path.write_text("".join(lines), encoding="utf-8")


def open_table(path: Path) -> RawTable:
    """A Parquet or CSV file, lazily."""
    if path.suffix == ".csv":
        return RawTable(path.name, pl.scan_csv(path, infer_schema=False), untyped=True, path=path)
    return RawTable(path.name, pl.scan_parquet(path), untyped=False, path=path)


def _users(folder: Path, meta: DatasetFile) -> RawTable | None:
    """The table of users where it has segments; users may be described for other ends, and then it is not read."""
    if not any((folder / f"users{suffix}").is_file() for suffix in FORMATS):
        return None
    users = _renamed(open_table(_find(folder, "users")), meta.columns)
    return users if "segment" in users.schema() else None


def _find(folder: Path, stem: str) -> Path:
    found = [folder / f"{stem}{suffix}" for suffix in FORMATS if (folder / f"{stem}{suffix}").is_file()]
    if not found:
        raise DataError(f"{folder}: holds neither {stem}.parquet nor {stem}.csv")
    if len(found) > 1:
        raise DataError(f"{folder}: holds both {stem}.parquet and {stem}.csv; keep one of them")
    return found[0]


def _renamed(table: RawTable, columns: Mapping[Any, str | list[str]]) -> RawTable:
    """Give mapped columns their public names; a column that already had that name gives way."""
    names: dict[str, str] = {}
    here = table.schema()
    for public, theirs in columns.items():
        tried = [theirs] if isinstance(theirs, str) else theirs
        match = next((name for name in tried if name in here), None)
        if match is not None:
            names[match] = public
    kept = [c for c in here if c in names or c not in names.values()]
    frame = table.frame.select(kept).rename(names)
    return dataclasses.replace(table, frame=frame)


def _without_ignored(items: RawTable, ignore: list[str], toml: Path) -> tuple[RawTable, list[str]]:
    """The items without the columns that `dataset.toml` leaves out, and a note of them."""
    here = items.schema()
    if unknown := [name for name in ignore if name not in here]:
        raise DataError(
            f"{toml}: ignore: {items.file} has no column {', '.join(map(repr, unknown))} (found: {', '.join(here)})"
        )
    if needed := [name for name in ignore if name in ("item_id", "title")]:
        raise DataError(f"{toml}: ignore: {', '.join(map(repr, needed))} cannot be left out")
    if not ignore:
        return items, []
    frame = items.frame.select(name for name in here if name not in ignore)
    return dataclasses.replace(items, frame=frame), [f"ignored columns of {items.file}: {', '.join(ignore)}"]


def _not_utf8(path: Path, separator: str) -> str:
    """Where a file stops being UTF-8, in words; empty where it is all UTF-8. Runs only after a failure."""
    data = path.read_bytes()
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        row = data.count(b"\n", 0, error.start)
        start = data.rfind(b"\n", 0, error.start) + 1
        field = next(csv.reader([data[start : error.start].decode("utf-8") + "."], delimiter=separator))
        header = next(
            csv.reader([data.split(b"\n", 1)[0].decode("utf-8", "replace").strip("\ufeff\r")], delimiter=separator)
        )
        column = header[min(len(field), len(header)) - 1]
        return (
            f"row {row}, column '{column}': byte 0x{data[error.start]:02x} is not valid UTF-8; "
            f"convert the file first (for example `iconv -f latin1 -t utf-8`)"
        )
    return ""


def _too_wide(path: Path, separator: str) -> str:
    """The first row with more fields than the header, in words; empty where there is none."""
    with path.open(encoding="utf-8-sig", newline="") as lines:
        rows = csv.reader(lines, delimiter=separator)
        try:
            width = len(next(rows, []))
            for number, row in enumerate(rows, 1):
                if len(row) > width:
                    return f"row {number}: has {len(row)} fields, the header has {width}; quote values with commas"
        except csv.Error as error:
            return f"line {rows.line_num}: {error}; is a quote left open?"
    return ""
