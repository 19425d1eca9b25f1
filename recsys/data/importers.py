"""From MovieLens, RecBole, CSV, Parquet or JSONL files to a folder in the public dataset format."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from recsys.data.catalog import type_columns
from recsys.data.check import write_quarantine
from recsys.data.counted import counted
from recsys.data.files import atomic_folder, refuse_taken
from recsys.data.ingest import describe, good_events, item_rows
from recsys.data.inspection import Inspection, inspect
from recsys.data.readers import Format, read_foreign
from recsys.data.source import write_toml
from recsys.errors import DataError


@dataclass(frozen=True)
class Imported:
    """What an import wrote, and what it set aside.

    quarantined : bad rows that were set aside
    orphaned    : events that were kept although their items were set aside
    """

    path: Path
    events: int
    items: int
    quarantined: int
    orphaned: int
    licence: str
    notes: tuple[str, ...]


def import_dataset(
    src: Path,
    out: Path,
    *,
    form: Format = "auto",
    mapping: Mapping[str, Sequence[str]] | None = None,
    items: Path | None = None,
    name: str | None = None,
    origin: str = "",
    licence: str | None = None,
    quarantine: Path | None = None,
    replace: bool = False,
    erased: Callable[[pl.Series], pl.Series] | None = None,
) -> Imported:
    """Write the data of `src` to the new folder `out` in the public format (Parquet and dataset.toml).

    mapping    : public column -> names to try in the files
    items      : the file of items, where `src` is the file of interactions
    quarantine : where bad rows go, with reasons; without it a bad row is an error
    erased     : for user ids, which of them are to be left out (Boolean)

    Errors: `DataError` for bad data, `StorageError` where `out` is taken or cannot be written.
    """
    refuse_taken(out, replace=replace)
    source = read_foreign(src, form, mapping or {}, items)
    inspection = inspect(source)
    set_aside = 0
    if len(inspection.violations):
        if quarantine is None or not inspection.readable:
            hint = "; --quarantine FILE sets bad rows aside" if inspection.readable else ""
            raise DataError(describe(inspection.violations) + hint)
        set_aside = write_quarantine(inspection, quarantine)
    log, catalog, notes = _log(inspection), *_items(inspection)
    if erased is not None and len(log):
        users = log["user_id"].unique(maintain_order=True)
        gone = users.filter(erased(users))
        log = log.filter(~pl.col("user_id").is_in(gone.implode()))
        if len(gone):
            notes.append(f"{counted(len(gone), 'user')} left out: their erasure is recorded (recsys forget)")
    if not len(log) or not len(catalog):
        raise DataError("; ".join([f"{src}: no good row is left", *notes]))
    if inspection.orphans[0] + inspection.dropped == len(log):
        raise DataError(f"{src}: no event is left on an item that was not set aside")
    terms = source.licence if licence is None else licence
    with atomic_folder(out, replace=replace) as folder:
        log.write_parquet(folder / "interactions.parquet")
        catalog.write_parquet(folder / "items.parquet")
        write_toml(folder / "dataset.toml", name=name or source.name, licence=terms, origin=origin)
    notes = [*inspection.notes, *notes]
    return Imported(out, len(log), len(catalog), set_aside, inspection.dropped, terms, tuple(notes))


def _log(inspection: Inspection) -> pl.DataFrame:
    """The good events in their order, in public columns: only those that the source has; segments of users join in."""
    here = inspection.log.raw.schema()
    columns = ["user_id", "item_id"]
    names = {}
    if "timestamp" in here or "position" in here:
        names["ts"] = "timestamp" if "timestamp" in here else "position"
    if "rating" in here or "weight" in here:
        names["weight"] = "rating" if "rating" in here else "weight"
    columns += [*names, *(["event"] if "event" in here else [])]
    return good_events(inspection, *columns).rename(names)


def _items(inspection: Inspection) -> tuple[pl.DataFrame, list[str]]:
    rows = item_rows(inspection)
    source = inspection.source
    columns = type_columns(rows, source.lists, untyped=source.items.untyped)
    return rows.select("item_id", "title").with_columns(*columns.attributes, *columns.prose), columns.notes
