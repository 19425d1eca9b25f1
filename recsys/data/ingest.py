"""From a dataset folder to the two tables that the whole line starts from.

The format is described in `data/README.md`; what is wrong with a folder is told by `recsys data check`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import polars as pl

from recsys.data.catalog import build_catalog
from recsys.data.counted import counted
from recsys.data.inspection import Inspection, inspect
from recsys.data.source import RawTable, Source, open_folder
from recsys.errors import DataError
from recsys.tables import Catalog, InteractionLog

Clock = Literal["time", "position"]


@dataclass(frozen=True)
class Dataset:
    """A checked dataset.

    clock   : "time" where `log.ts` is Unix seconds; "position" where it is the place in the user's history
    rated   : weights come from a rating column
    notes   : what was decided or noticed while reading, one plain sentence each
    licence : the terms of the data, where its dataset.toml states them
    """

    name: str
    log: InteractionLog
    catalog: Catalog
    clock: Clock
    rated: bool
    notes: tuple[str, ...] = ()
    licence: str = ""


def read_dataset(folder: Path) -> Dataset:
    """Read and check a dataset folder.

    Errors: `DataError` with the first violation's file, row and column, and how many there are.
    """
    inspection = inspect(open_folder(folder))
    if len(inspection.violations):
        raise DataError(f"{describe(inspection.violations)}; run `recsys data check {folder}`")
    return build_dataset(inspection)


def dataset_from_frames(
    name: str, interactions: pl.DataFrame, items: pl.DataFrame, *, lists: Mapping[str, str] | None = None
) -> Dataset:
    """A dataset out of two frames in memory, in the columns of the dataset format.

    Errors: `DataError`, as for `read_dataset`.
    """
    tables = (
        RawTable("interactions", interactions.lazy(), untyped=False),
        RawTable("items", items.lazy(), untyped=False),
    )
    inspection = inspect(Source(name, *tables, lists or {}))
    if len(inspection.violations):
        raise DataError(describe(inspection.violations))
    return build_dataset(inspection)


def describe(violations: pl.DataFrame) -> str:
    """The first of some violations in one line, and how many there are."""
    first = violations.row(0, named=True)
    row = "" if first["row"] is None else f", row {first['row']}"
    column = "" if first["column"] is None else f", column '{first['column']}'"
    value = "" if first["value"] is None else f" value {first['value'][:60]!r}"
    more = f" ({len(violations):,} violations in all)" if len(violations) > 1 else ""
    return f"{first['file']}{row}{column}:{value} {first['reason']}{more}"


def build_dataset(inspection: Inspection) -> Dataset:
    """The tables of an inspected source, from its good rows."""
    source = inspection.source
    log = build_log(inspection)
    catalog, notes = build_catalog(item_rows(inspection), source.lists, untyped=source.items.untyped)
    if "segment" in log.frame.columns:
        notes.append(_segment_note(log))
    repeats = equal_rows(log, with_time=inspection.clock == "time")
    if repeats:
        notes.append(f"{counted(repeats, 'event is', 'events are')} exactly equal to an earlier one: kept")
    events, items = inspection.orphans
    if events:
        notes.append(
            f"{counted(events, 'event is', 'events are')} on {counted(items, 'item')} that the items table lacks: "
            "kept as history, never recommended"
        )
    if inspection.dropped:
        notes.append(
            f"{counted(inspection.dropped, 'event is', 'events are')} on items whose own rows are bad: "
            "orphans once those rows are set aside"
        )
    return Dataset(
        source.name,
        log,
        catalog,
        cast(Clock, inspection.clock),
        inspection.rated,
        (*inspection.notes, *notes),
        source.licence,
    )


def build_log(inspection: Inspection) -> InteractionLog:
    """The good rows as a log. Without a time column, `ts` is the place among the user's events in the file."""
    log = InteractionLog.of(good_events(inspection, *InteractionLog.COLUMNS))
    here = inspection.log.raw.schema()
    if "timestamp" in here or "position" in here:
        return log
    return InteractionLog(log.frame.with_columns(ts=pl.int_range(pl.len(), dtype=pl.Int64).over("user_id")))


def good_events(inspection: Inspection, *columns: str) -> pl.DataFrame:
    """Typed columns of the good events in their order, and `segment` where the log or the users have one."""
    log, users = inspection.log, inspection.users
    frame = log.raw.collect(log.good(*columns, *(["segment"] if "segment" in log.typed else [])))
    if users is None:
        return frame
    known = users.raw.collect(users.good("user_id", "segment"))
    return frame.join(known, on="user_id", how="left", maintain_order="left")


def item_rows(inspection: Inspection) -> pl.DataFrame:
    """The good rows of the items table: `__row`, typed id and title, the other columns as they came."""
    table = inspection.items
    rows = table.only_good().with_columns(**table.typed)
    return table.raw.collect(rows)


def _segment_note(log: InteractionLog) -> str:
    found = log.frame.select("user_id", "segment")
    nobody = found["user_id"].n_unique() - found.drop_nulls()["user_id"].n_unique()
    return f"{counted(found['segment'].drop_nulls().n_unique(), 'segment')}; {counted(nobody, 'user')} without one"


def equal_rows(log: InteractionLog, *, with_time: bool) -> int:
    """How many events equal an earlier one in every column (in all but `ts` where that is only a position)."""
    columns = [c for c in log.frame.columns if with_time or c != "ts"]
    frame = log.frame.select(columns)
    # hashes first: they are small, and only the few rows whose hash repeats need an exact comparison
    suspects = frame.filter(frame.hash_rows().is_duplicated())
    return len(suspects) - suspects.n_unique() if len(suspects) else 0
