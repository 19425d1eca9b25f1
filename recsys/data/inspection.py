"""The one finder of violations, which ingest, check and import share."""

import time
from dataclasses import dataclass

import polars as pl

from recsys.data.columns import type_event, type_ids, type_segment, type_time, type_title, type_weight
from recsys.data.rules import VIOLATIONS, TypedTable
from recsys.data.source import Source


@dataclass(frozen=True)
class Inspection:
    """What a source holds once its rules are checked.

    clock   : "time" or "position"
    rated   : weights come from ratings
    orphans : how many events are on items that the items table lacks, and how many such items
    dropped : how many events are on items of the table whose own rows are bad (no title), so that they are orphans
        where the bad rows are set aside
    """

    source: Source
    log: TypedTable
    items: TypedTable
    users: TypedTable | None
    violations: pl.DataFrame
    clock: str
    rated: bool
    orphans: tuple[int, int]
    dropped: int
    notes: tuple[str, ...]

    @property
    def tables(self) -> list[TypedTable]:
        """Those that there are."""
        return [table for table in (self.log, self.items, self.users) if table is not None]

    @property
    def readable(self) -> bool:
        """Whether every needed column exists with a usable type, so that the good rows can be read at all."""
        return not self.violations["row"].is_null().any()


def inspect(source: Source, *, now: float | None = None) -> Inspection:
    """Type every column and find every violation. `now` (Unix seconds) is what "future" is measured from.

    Errors: `DataError` only where a file cannot be decoded at all.
    """
    log, items = TypedTable(source.interactions), TypedTable(source.items)
    users = TypedTable(source.users) if source.users else None
    tables = [table for table in (log, items, users) if table is not None]
    type_ids(log, items, users)
    clock = type_time(log, time.time() if now is None else now)
    rated = type_weight(log)
    type_event(log)
    type_title(items)
    type_segment(users or log)
    for table in tables:
        if not table.raw.collect(table.raw.frame.select(pl.len())).item():
            table.faults.append((None, None, "the table has no rows"))
    violations = pl.concat([table.violations() for table in tables])
    orphans, dropped = (0, 0), 0
    if not violations["row"].is_null().any():
        orphans, dropped, strangers = _orphans(log, items)
        violations = pl.concat([strangers, *([_strangers(log, users)] if users else []), violations])
    notes = (*source.notes, *log.notes, *items.notes)
    return Inspection(source, log, items, users, violations, clock, rated, orphans, dropped, notes)


def _orphans(log: TypedTable, items: TypedTable) -> tuple[tuple[int, int], int, pl.DataFrame]:
    """Counts of orphan events and items; of events on bad items; and the violation where every event is an orphan."""
    per_item = log.raw.collect(log.good("item_id").group_by("item_id").len())
    # an item that breaks another rule (no title) is no stranger: its own violation says enough
    known = items.raw.collect(items.rows.select(items.typed["item_id"].alias("item_id")))
    lost = per_item.join(known, on="item_id", how="anti")
    served = per_item.join(items.raw.collect(items.good("item_id")), on="item_id", how="semi")
    dropped = int(per_item["len"].sum()) - int(lost["len"].sum()) - int(served["len"].sum())
    strangers = pl.DataFrame(schema=VIOLATIONS)
    if len(per_item) and len(lost) == len(per_item):
        reason = f"no event is on an item of {items.raw.file}; do both tables use the same item ids?"
        row = (log.raw.file, None, "item_id", str(lost["item_id"].min()), reason)
        strangers = pl.DataFrame([row], schema=VIOLATIONS, orient="row")
    return (int(lost["len"].sum()), len(lost)), dropped, strangers


def _strangers(log: TypedTable, users: TypedTable) -> pl.DataFrame:
    """The violation where no row of the users is of a user of the log."""
    met = log.raw.collect(log.good("user_id").unique())
    described = users.raw.collect(users.good("user_id"))
    if not len(met) or not len(described) or len(described.join(met, on="user_id", how="semi")):
        return pl.DataFrame(schema=VIOLATIONS)
    reason = (
        f"no row is of a user of {log.raw.file}, whose ids are such as {str(met['user_id'].min())!r}; "
        "do both tables use the same user ids?"
    )
    row = (users.raw.file, None, "user_id", str(described["user_id"].min()), reason)
    return pl.DataFrame([row], schema=VIOLATIONS, orient="row")
