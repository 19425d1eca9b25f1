"""What a dataset folder holds and what is wrong with it, for a person to read."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from recsys.data.files import atomic_file
from recsys.data.ingest import Dataset, build_dataset, equal_rows
from recsys.data.inspection import Inspection, inspect
from recsys.data.rules import ROW, TypedTable
from recsys.data.source import open_folder
from recsys.errors import SpecError

QUANTILES = {"min": 0.0, "25%": 0.25, "median": 0.5, "75%": 0.75, "95%": 0.95, "max": 1.0}


@dataclass(frozen=True)
class Attribute:
    """One attribute of the items: its type, share of items that have it, distinct values, most frequent ones."""

    name: str
    type: str
    coverage: float
    distinct: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Stats:
    """Counts over the good rows.

    span            : first and last moment (UTC), None where the log has no time
    equal_rows      : events equal to an earlier one in every column
    repeated_pairs  : events on an item that the user had met before
    orphans         : events on items that the items table lacks, and how many such items
    unmet           : items without any event
    density         : distinct (user, item) pairs / (users * items of the catalog)
    text_coverage   : share of items whose text says more than the title
    text_words      : words of an item's text, on average
    weights         : smallest, mean and largest weight
    """

    users: int
    items: int
    events: int
    event_kinds: dict[str, int]
    span: tuple[datetime, datetime] | None
    equal_rows: int
    repeated_pairs: int
    orphans: tuple[int, int]
    unmet: int
    density: float
    text_coverage: float
    text_words: float
    events_per_user: dict[str, float]
    single_event_users: int
    weights: tuple[float, float, float]
    attributes: tuple[Attribute, ...]


@dataclass(frozen=True)
class CheckReport:
    """The outcome of a check. `stats` is None where a whole column is missing or of a wrong type.

    violations : columns file, row (1-based, null for a whole column), column, value, reason
    usable     : no violation at all, so that the dataset can be read
    """

    name: str
    licence: str
    violations: pl.DataFrame
    stats: Stats | None
    notes: tuple[str, ...]

    @property
    def usable(self) -> bool:
        """Whether `read_dataset` takes this folder."""
        return not len(self.violations)


def check_dataset(folder: Path, *, quarantine: Path | None = None) -> CheckReport:
    """Check a dataset folder; write its bad rows to `quarantine` (Parquet or CSV by suffix) where it is given.

    Errors: `DataError` where the folder cannot be opened or a file not decoded; `StorageError` for `quarantine`.
    """
    inspection = inspect(open_folder(folder))
    if quarantine is not None:
        write_quarantine(inspection, quarantine)
    source = inspection.source
    if not inspection.readable:
        return CheckReport(source.name, source.licence, inspection.violations, None, inspection.notes)
    dataset = build_dataset(inspection)
    return CheckReport(
        dataset.name, dataset.licence, inspection.violations, _stats(dataset, inspection.orphans), dataset.notes
    )


def quarantined(inspection: Inspection) -> pl.DataFrame:
    """The violations with the whole bad row beside each, as JSON in the column `record`."""
    parts = []
    for table in inspection.tables:
        mine = inspection.violations.filter(pl.col("file") == table.raw.file)
        parts.append(mine.join(_records(table, mine["row"].drop_nulls().unique()), on="row", how="left"))
    return pl.concat(parts)


def write_quarantine(inspection: Inspection, path: Path) -> int:
    """Write the bad rows with reasons to a Parquet or CSV file; returns how many rows of data are in it.

    Errors: `SpecError` for another suffix, `StorageError` where it cannot be written.
    """
    frame = quarantined(inspection)
    if path.suffix not in (".parquet", ".csv"):
        raise SpecError(f"--quarantine {path}: the name must end in .parquet or .csv")
    with atomic_file(path) as temporary:
        if path.suffix == ".csv":
            frame.write_csv(temporary)
        else:
            frame.write_parquet(temporary)
    return frame.select("file", "row").n_unique()


def _records(table: TypedTable, rows: pl.Series) -> pl.DataFrame:
    if not len(rows):
        return pl.DataFrame(schema={"row": pl.Int64, "record": pl.String})
    bad = table.raw.collect(table.rows.filter(pl.col(ROW).is_in(rows.implode())))
    records = [json.dumps(record, ensure_ascii=False, default=str) for record in bad.drop(ROW).iter_rows(named=True)]
    return pl.DataFrame({"row": bad[ROW].cast(pl.Int64), "record": records}, schema_overrides={"record": pl.String})


def _stats(dataset: Dataset, orphans: tuple[int, int]) -> Stats:
    log, items = dataset.log.frame, dataset.catalog.frame
    per_user = log.group_by("user_id").len()["len"]
    pairs = log.select("user_id", "item_id").n_unique()
    known = log.join(items.select("item_id"), on="item_id", how="semi")
    met = known["item_id"].n_unique()
    kinds = log["event"].value_counts(sort=True)
    ts = log["ts"]
    has_more = items["text"].str.len_chars() > items["title"].str.len_chars()
    return Stats(
        users=len(per_user),
        items=len(items),
        events=len(log),
        event_kinds={kind: int(n) for kind, n in kinds.iter_rows()},
        span=(_moment(ts.min()), _moment(ts.max())) if dataset.clock == "time" and len(log) else None,
        equal_rows=equal_rows(dataset.log, with_time=dataset.clock == "time"),
        repeated_pairs=len(log) - pairs,
        orphans=orphans,
        unmet=len(items) - met,
        density=known.select("user_id", "item_id").n_unique() / (len(per_user) * len(items))
        if len(log) and len(items)
        else 0.0,
        text_coverage=_mean(has_more),
        text_words=_mean(items["text"].str.count_matches(r"\S+")),
        events_per_user={name: _number(per_user.quantile(q, "nearest")) for name, q in QUANTILES.items()},
        single_event_users=int((per_user == 1).sum()),
        weights=(_number(log["weight"].min()), _mean(log["weight"]), _number(log["weight"].max())),
        attributes=tuple(_attribute(items[name]) for name in dataset.catalog.attributes),
    )


def _attribute(series: pl.Series) -> Attribute:
    values = series.explode() if isinstance(series.dtype, pl.List) else series
    values = values.drop_nulls()
    present = (series.list.len() > 0).fill_null(False) if isinstance(series.dtype, pl.List) else series.is_not_null()
    top = values.value_counts(sort=True).head(4)[series.name]
    kind = {pl.String: "text", pl.Int64: "whole number", pl.Float64: "number"}.get(type(series.dtype), "list")
    return Attribute(series.name, kind, _mean(present), values.n_unique(), tuple(str(v) for v in top))


def _moment(seconds: object) -> datetime:
    return datetime.fromtimestamp(int(str(seconds)), UTC)


def _mean(series: pl.Series) -> float:
    return _number(series.mean())


def _number(value: object) -> float:
    return 0.0 if value is None else float(str(value))
