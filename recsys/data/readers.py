"""Readers of foreign formats: each finds its files in a folder and gives their columns the public names."""

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

import polars as pl

from recsys.data.catalog import PROSE
from recsys.data.source import FORMATS, PublicColumn, RawTable, Source, open_folder, surplus_notes
from recsys.errors import DataError, SpecError

Format = Literal["auto", "dataset", "movielens", "recbole", "csv", "parquet", "jsonl"]
Mapped = Mapping[str, Sequence[str]]

MOVIELENS_LICENCE = (
    "MovieLens, GroupLens Research, University of Minnesota: for research; no redistribution and no commercial use "
    "without permission; cite Harper and Konstan 2015, doi 10.1145/2827872; see https://grouplens.org/datasets/movielens"
)
# public name -> the names, in lower case and without "_", "-" and spaces, that are taken to mean it
ALIASES: dict[str, tuple[str, ...]] = {
    "user_id": ("userid", "user", "uid", "customerid", "reviewerid", "visitorid"),
    "item_id": ("itemid", "item", "iid", "movieid", "productid", "bookid", "articleid", "asin", "isbn", "sku"),
    "timestamp": ("timestamp", "ratingtimestamp", "eventtime", "datetime", "time", "ts", "date", "unixreviewtime"),
    "position": ("position",),
    "rating": ("rating", "score", "stars", "overall"),
    "weight": ("weight",),
    "event": ("event", "eventtype", "action", "behavior", "behaviour"),
    "segment": (),  # what is known of users is used only where it is asked for
    "title": ("title", "movietitle", "itemtitle", "producttitle", "booktitle", "name", "productname"),
}
LOG_FILES = ("interactions", "ratings", "events", "log", "reviews", "purchases", "clicks")
ITEM_FILES = ("items", "movies", "products", "books", "articles", "catalog", "catalogue", "meta", "metadata")
USER_FILES = ("users", "customers")
SUFFIXES: dict[Format, tuple[str, ...]] = {
    "csv": (".csv", ".tsv"),
    "parquet": (".parquet",),
    "jsonl": (".jsonl", ".ndjson"),
}
# u.genre of ml-100k, in the order of the flags in u.item; the first ("unknown") says nothing
ML100K_GENRES = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama"),
    *("Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
YEAR = r"\((\d{4})\)\s*$"


def read_foreign(src: Path, form: Format, mapping: Mapped, items: Path | None = None) -> Source:
    """Open a folder (or, with `items`, two files) of another format.

    mapping : public name -> the names to try in the files, before the usual ones

    Errors: `DataError` where files are missing or cannot be read, `SpecError` for an unknown name in `mapping`.
    """
    for public in mapping:
        if public not in get_args(PublicColumn):
            raise SpecError(f"--map {public}: unknown column; known are {', '.join(get_args(PublicColumn))}")
    if not src.exists():
        raise DataError(f"{src}: no such file or folder")
    form = detect(src, items) if form == "auto" else form
    if form == "dataset" and (src / "dataset.toml").exists():
        if mapping:
            raise SpecError(f"--map: {src / 'dataset.toml'} maps the names already; change it there")
        return open_folder(src)
    if form == "dataset" and not mapping and items is None:
        return open_folder(src)  # as `check` reads it, with the segments of users
    if form == "dataset":
        return _generic(src, FORMATS, mapping, items)
    if form == "movielens":
        if mapping:
            raise SpecError("--map: MovieLens files have fixed names, there is nothing to map")
        return _movielens(src)
    if form == "recbole":
        return _recbole(src, mapping)
    return _generic(src, SUFFIXES[form], mapping, items)


def detect(src: Path, items: Path | None = None) -> Format:
    """Tell a format by the files that are there. Errors: `DataError` naming what would be recognised."""
    names = {f.name for f in src.iterdir()} if src.is_dir() else {src.name}
    if {"u.data", "u.item"} <= names or {"ratings.dat", "movies.dat"} <= names or _is_movielens_csv(src, names):
        return "movielens"
    if any(name.endswith(".inter") for name in names):
        return "recbole"
    logs, catalogs = ({f"{stem}{suffix}" for suffix in FORMATS} for stem in ("interactions", "items"))
    if items is None and names & logs and names & catalogs:
        return "dataset"
    stems = LOG_FILES if src.is_dir() else (src.stem,)
    for form, suffixes in SUFFIXES.items():
        if names & {f"{stem}{suffix}" for stem in stems for suffix in suffixes}:
            return form
    raise DataError(
        f"{src}: no known format; looked for MovieLens (u.data, ratings.dat, ratings.csv with movies.csv), RecBole "
        f"(*.inter), and {', '.join(LOG_FILES)} as .csv, .tsv, .parquet or .jsonl"
    )


def _is_movielens_csv(src: Path, names: set[str]) -> bool:
    if not {"ratings.csv", "movies.csv"} <= names:
        return False
    with (src / "ratings.csv").open("rb") as file:
        return file.readline(1_000).strip() == b"userId,movieId,rating,timestamp"


def _movielens(src: Path) -> Source:
    names = {f.name for f in src.iterdir()} if src.is_dir() else set()
    if "u.data" in names:
        log = _split_lines(src / "u.data", "\t", ["user_id", "item_id", "rating", "timestamp"])
        items = _ml100k_items(src / "u.item")
    elif "ratings.dat" in names:
        log = _split_lines(src / "ratings.dat", "::", ["user_id", "item_id", "rating", "timestamp"])
        items = _split_lines(src / "movies.dat", "::", ["item_id", "title", "genres"])
    elif "ratings.csv" in names:
        log, items = (_named(_scan(src / name), {}) for name in ("ratings.csv", "movies.csv"))
    else:
        raise DataError(f"{src}: holds no u.data, ratings.dat or ratings.csv of MovieLens")
    if "title" in items.schema():
        frame = items.frame.with_columns(pl.col("title").str.extract(YEAR).cast(pl.Int64).alias("year"))
        if "genres" in items.schema():
            frame = frame.with_columns(pl.col("genres").replace("(no genres listed)", None))
        items = dataclasses.replace(items, frame=frame)
    return Source(src.resolve().name, log, items, {}, MOVIELENS_LICENCE)


def _ml100k_items(path: Path) -> RawTable:
    flags = [f"flag_{i}" for i in range(len(ML100K_GENRES))]
    table = _split_lines(path, "|", ["item_id", "title", "released", "video", "url", *flags])
    named = [pl.when(pl.col(f) == "1").then(pl.lit(g)) for f, g in zip(flags[1:], ML100K_GENRES[1:], strict=True)]
    genres = pl.concat_str(named, separator="|", ignore_nulls=True).alias("genres")
    return RawTable(table.file, table.frame.select("item_id", "title", genres), untyped=True)


def _recbole(src: Path, mapping: Mapped) -> Source:
    """RecBole's atomic files: tab-separated, a header of name:type, lists (token_seq) separated by spaces."""
    folder = src if src.is_dir() else src.parent
    logs = sorted(folder.glob("*.inter")) if src.is_dir() else [src]
    if len(logs) != 1:
        raise DataError(f"{folder}: holds {len(logs)} .inter files; name the one to import")
    item_file = logs[0].with_suffix(".item")
    if not item_file.is_file():
        raise DataError(f"{item_file}: no such file; items with titles are needed")
    user_file = logs[0].with_suffix(".user")
    files = [logs[0], item_file, *([user_file] if user_file.is_file() else [])]
    raw = [_scan(path, separator="\t", quote=False) for path in files]
    plain = [dataclasses.replace(t, frame=t.frame.rename(lambda c: c.partition(":")[0])) for t in raw]
    log, items, users = _tables(mapping, *plain)
    types = dict(column.partition(":")[::2] for column in raw[1].schema())
    lists = [c for c in items.schema() if types.get(c, "").endswith("_seq") and c != "title" and c not in PROSE]
    genre = next((c for c in ("genre", "class") if c in items.schema() and "genres" not in items.schema()), None)
    if genre is not None:
        items = dataclasses.replace(items, frame=items.frame.rename({genre: "genres"}))
        lists = ["genres" if c == genre else c for c in lists]
    return Source(logs[0].stem, log, items, dict.fromkeys(lists, " "), users=users)


def _generic(src: Path, suffixes: Iterable[str], mapping: Mapped, items: Path | None) -> Source:
    if src.is_dir():
        log_file = _only(src, LOG_FILES, suffixes)
        items = items or _only(src, ITEM_FILES, suffixes)
    else:
        log_file = src
    if items is None:
        raise DataError(f"{src}: is only the interactions; name the file of items with --items")
    folder = src if src.is_dir() else src.parent
    people = [folder / f"{stem}{suffix}" for stem in USER_FILES for suffix in suffixes]
    asked = src.is_dir() or "segment" in mapping
    files = [log_file, items, *[path for path in people if asked and path.is_file()][:1]]
    log, catalog, users = _tables(mapping, *map(_scan, files), any_id=True)
    return Source(folder.resolve().name, log, catalog, {}, notes=tuple(surplus_notes(log, users)), users=users)


def _tables(
    mapping: Mapped, log: RawTable, items: RawTable, users: RawTable | None = None, *, any_id: bool = False
) -> tuple[RawTable, RawTable, RawTable | None]:
    """The tables under public names. `users` is there only where the segments are to be had from it: where the column
    that `mapping` names is there and not in the log, or the log has none at all.

    any_id : a column of items or users that is called "id" is their id
    """
    _all_found(mapping, log, items, users)
    of_users, here = mapping.get("segment", ()), log.schema()
    # A segment is the users': an attribute of the items by the same name stays what it is.
    of_items = {public: theirs for public, theirs in mapping.items() if public != "segment"}
    named, catalog = _named(log, mapping), _named(items, of_items, "item_id" if any_id else "")
    if users is None or set(of_users) & set(here) or (not of_users and "segment" in here):
        return named, catalog, None
    found = _named(users, mapping, "user_id" if any_id else "")
    return named, catalog, found if "segment" in found.schema() else None


def _all_found(mapping: Mapped, log: RawTable, items: RawTable, users: RawTable | None) -> None:
    for public, theirs in mapping.items():
        tables = [table for table in (log, None if public == "segment" else items, users) if table]
        here = {column for table in tables for column in table.schema()}
        if not here & set(theirs):
            files = " and ".join(table.file for table in tables)
            have = "have" if len(tables) > 1 else "has"
            raise SpecError(
                f"--map {public}={theirs[0]}: {files} {have} no such column (found: {', '.join(sorted(here))})"
            )


def _only(folder: Path, stems: Iterable[str], suffixes: Iterable[str]) -> Path:
    found = [folder / f"{stem}{s}" for stem in stems for s in suffixes if (folder / f"{stem}{s}").is_file()]
    if len(found) != 1:
        said = "none of" if not found else "several of"
        raise DataError(f"{folder}: holds {said} {', '.join(stems)} ({', '.join(suffixes)}); name the files instead")
    return found[0]


def _scan(path: Path, separator: str | None = None, quote: bool = True) -> RawTable:
    """A file, lazily; text formats come back as they are written."""
    if not os.access(path, os.R_OK):
        raise DataError(f"{path}: no such file, or no permission to read it")
    if path.suffix == ".parquet":
        return RawTable(path.name, pl.scan_parquet(path), untyped=False, path=path)
    if path.suffix in (".jsonl", ".ndjson"):
        return RawTable(path.name, pl.scan_ndjson(path, infer_schema_length=None), untyped=False)
    if separator is None:
        with path.open("rb") as file:
            header = file.readline(65_536)
        separator = max(",\t;|", key=lambda mark: header.count(mark.encode()))
    frame = pl.scan_csv(path, separator=separator, infer_schema=False, quote_char='"' if quote else None)
    return RawTable(path.name, frame, untyped=True, path=path, separator=separator)


def _named(table: RawTable, mapping: Mapped, key: str = "") -> RawTable:
    """Give the columns their public names: first by `mapping`, then by the usual names; "id" is the `key`."""
    here = table.schema()
    flat = {re.sub(r"[\s_-]", "", name.lower()): name for name in reversed(list(here))}
    names: dict[str, str] = {}
    for public, aliases in ALIASES.items():
        given = [name for name in mapping.get(public, ()) if name in here]
        usual = [flat[alias] for alias in aliases if alias in flat]
        if public == key and "id" in flat:
            usual.append(flat["id"])
        exact = [public] if public in here and not given else []
        chosen = next((name for name in (*given, *exact, *usual) if name not in names), None)
        if chosen is not None:
            names[chosen] = public
    kept = [c for c in here if c in names or c not in names.values()]
    return dataclasses.replace(table, frame=table.frame.select(kept).rename(names))


def _split_lines(path: Path, separator: str, columns: list[str]) -> RawTable:
    """A file of lines with a separator of any length and no quoting, UTF-8 or else Latin-1, as text columns."""
    if not os.access(path, os.R_OK):
        raise DataError(f"{path}: no such file, or no permission to read it")
    data = path.read_bytes()
    if not data.strip() or b"\0" in data:
        raise DataError(f"{path}: {'holds zero bytes: no text file' if data.strip() else 'the file is empty'}")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    # a separator that occurs nowhere: every line is one field
    lines = pl.read_csv(
        text.encode(), has_header=False, separator="\x00", quote_char=None, infer_schema=False, new_columns=["line"]
    )
    fields = pl.col("line").str.splitn(separator, len(columns)).struct.rename_fields(columns).struct.unnest()
    return RawTable(path.name, lines.lazy().select(fields), untyped=True)
