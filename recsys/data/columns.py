"""How each column of the dataset format is typed, and the rules on its values."""

from typing import Literal, NamedTuple

import polars as pl

from recsys.data.rules import ROW, Rule, TypedTable

DAY = 86_400
# Median size of a time stamp -> its unit. 1e11 seconds lie in the year 5138, 1e11 milliseconds in 1973.
UNITS = ((1e17, 1_000_000_000, "nanoseconds"), (1e14, 1_000_000, "microseconds"), (1e11, 1_000, "milliseconds"))
ISO = ("%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%d")


Kind = Literal["integer", "text"]


class IdKind(NamedTuple):
    """What the ids of a column are; `given` where the file itself says so (Parquet), not only the text (CSV)."""

    kind: Kind
    given: bool


def type_ids(log: TypedTable, items: TypedTable, users: TypedTable | None = None) -> None:
    """User ids and item ids become Int64 or String; the same in the log as in the table that describes them.

    A CSV's ids are integers only where each is written as an integer prints ("7", not "007"), so that every id comes
    back as it was given.
    """
    if users is not None:
        _type_shared("user_id", log, users)
    elif found := _id_kind(log, "user_id"):
        _type_id(log, "user_id", found.kind)
    _type_shared("item_id", log, items)


def _type_shared(column: Literal["user_id", "item_id"], log: TypedTable, key: TypedTable) -> None:
    """An id of the log that is the key of another table."""
    pair = _id_kind(log, column), _id_kind(key, column)
    kinds = [k for k in pair if k]
    given = {k.kind for k in kinds if k.given}
    joint: Kind = "integer" if {k.kind for k in kinds} == {"integer"} else "text"
    if joint == "text" and "integer" in given:
        words = [k.kind for k in kinds]
        key.faults.append(
            (column, None, f"is {words[1]} here but {words[0]} in {log.raw.file}; give both the same type")
        )
        return
    for table, kind in zip((log, key), pair, strict=True):
        if kind:
            _type_id(table, column, joint)
    if column in key.typed:
        repeated = ~key.typed[column].is_first_distinct() & ~_absent(key, column)
        key.rules.append(Rule(column, repeated, f"repeats the {column} of an earlier row"))


def type_time(log: TypedTable, now: float) -> Literal["time", "position"]:
    """The column `ts`: Unix seconds from `timestamp`; else `position`; else the row number (the file's order)."""
    schema = log.raw.schema()
    if "timestamp" in schema:
        if "position" in schema:
            log.notes.append("column 'position' is not used: the column 'timestamp' gives the order")
        _type_timestamp(log, schema["timestamp"], now)
        return "time"
    if "position" in schema:
        log.notes.append("no timestamp: the column 'position' gives the order of a user's events")
        _type_position(log, schema["position"])
        return "position"
    log.notes.append("no timestamp or position: the order of a user's events is the order in the file")
    log.typed["ts"] = pl.col(ROW).cast(pl.Int64)
    return "position"


def type_weight(log: TypedTable) -> bool:
    """The column `weight`, from `rating`, else `weight`, else 1; true where it came from a rating."""
    schema = log.raw.schema()
    if "rating" in schema and "weight" in schema:
        log.notes.append("column 'weight' is not used: the column 'rating' gives the weights")
    column = next((c for c in ("rating", "weight") if c in schema), None)
    if column is None:
        log.typed["weight"] = pl.lit(1.0)
        return False
    dtype = schema[column]
    if not (dtype.is_numeric() or _is_text(dtype) or dtype == pl.Boolean):
        log.faults.append((column, None, f"is {dtype}, expected numbers"))
        return False
    plain = _text(column).str.strip_chars() if _is_text(dtype) else pl.col(column)
    number = plain.cast(pl.Float64, strict=False)
    _add_presence(log, column, number, "is not a number")
    log.rules.append(Rule(column, (~number.is_finite()).fill_null(False), "is not a finite number"))
    log.typed["weight"] = number
    return column == "rating"


def type_event(log: TypedTable) -> None:
    """The column `event`; "interaction" where there is none."""
    schema = log.raw.schema()
    if "event" not in schema:
        log.typed["event"] = pl.lit("interaction")
        return
    if not (_is_text(schema["event"]) or schema["event"].is_integer()):
        log.faults.append(("event", None, f"is {schema['event']}, expected strings"))
        return
    log.rules.append(Rule("event", _absent(log, "event"), "is missing"))
    log.typed["event"] = _text("event")


def type_segment(table: TypedTable) -> None:
    """The column `segment` of the log or of the users, where there is one; what is blank is null."""
    schema = table.raw.schema()
    if "segment" not in schema:
        return
    if not (_is_text(schema["segment"]) or schema["segment"].is_integer()):
        table.faults.append(("segment", None, f"is {schema['segment']}, expected strings or integers"))
        return
    text = _text("segment").str.strip_chars()
    table.typed["segment"] = pl.when(text != "").then(text)


def type_title(items: TypedTable) -> None:
    """The column `title`: text that is not blank."""
    schema = items.raw.schema()
    if _missing(items, "title"):
        return
    if not _is_text(schema["title"]):
        items.faults.append(("title", None, f"is {schema['title']}, expected strings"))
        return
    items.rules.append(Rule("title", _absent(items, "title"), "is missing: an item needs a title"))
    items.typed["title"] = _text("title").str.strip_chars()


def _id_kind(table: TypedTable, column: str) -> IdKind | None:
    """The kind of an id column; None, and a fault, where it is missing or of a wrong type."""
    if _missing(table, column):
        return None
    dtype = table.raw.schema()[column]
    if table.raw.untyped:
        canonical = pl.col(column).cast(pl.Int64, strict=False).cast(pl.String) == pl.col(column)
        integers = table.raw.collect(
            table.raw.frame.select((canonical.fill_null(False) | _absent(table, column)).all())
        )
        return IdKind("integer" if integers.item() else "text", given=False)
    if dtype.is_integer() or _is_text(dtype):
        return IdKind("integer" if dtype.is_integer() else "text", given=True)
    table.faults.append((column, None, f"is {dtype}; ids are integers or strings"))
    return None


def _type_id(table: TypedTable, column: str, kind: Kind) -> None:
    typed = pl.col(column).cast(pl.Int64, strict=False) if kind == "integer" else _text(column)
    table.typed[column] = typed
    _add_presence(table, column, typed, "does not fit a 64-bit integer")


def _type_timestamp(log: TypedTable, dtype: pl.DataType, now: float) -> None:
    column = pl.col("timestamp")
    if dtype.is_numeric() or _is_text(dtype):
        seconds = _seconds(log, dtype)
    elif isinstance(dtype, pl.Datetime | pl.Date):
        seconds = column.dt.epoch("s").cast(pl.Int64)
        if getattr(dtype, "time_zone", "UTC") is None:
            log.notes.append("timestamps have no time zone: they are read as UTC")
    else:
        log.faults.append(("timestamp", None, f"is {dtype}, expected Unix seconds or dates"))
        return
    _add_presence(
        log, "timestamp", seconds, "is not a time: neither Unix seconds nor a date such as 2024-05-01T12:00:00Z"
    )
    log.rules.append(Rule("timestamp", (seconds < 0).fill_null(False), "is negative: before 1970"))
    # one day of grace: clocks and time zones differ
    log.rules.append(Rule("timestamp", (seconds > int(now) + DAY).fill_null(False), "lies in the future"))
    log.typed["ts"] = seconds


def _seconds(log: TypedTable, dtype: pl.DataType) -> pl.Expr:
    """Unix seconds from numbers or text; the unit is told by the size of the median."""
    column = pl.col("timestamp")
    if _is_text(dtype):
        column = _text("timestamp").str.strip_chars()
        numbers, present = log.raw.collect(
            log.raw.frame.select(
                column.cast(pl.Float64, strict=False).is_not_null().sum(), (~_absent(log, "timestamp")).sum().alias("n")
            )
        ).row(0)
        if numbers < present:
            iso = _iso_seconds(column)
            dates = log.raw.collect(log.raw.frame.select(iso.is_not_null().sum())).item()
            if dates > numbers:
                log.notes.append("timestamps without a time zone are read as UTC")
                return iso
    as_float = column.cast(pl.Float64, strict=False)
    median = log.raw.collect(log.raw.frame.select(as_float.filter(as_float.is_finite()).median())).item() or 0
    unit = next(((size, name) for limit, size, name in UNITS if median > limit), None)
    scale = unit[0] if unit else 1
    if unit:
        log.notes.append(f"timestamps are {unit[1]}, told by their size: they are cut to whole seconds")
    fraction = (as_float / scale).floor().cast(pl.Int64, strict=False)
    if dtype.is_float() or dtype.is_decimal():
        return fraction
    return pl.coalesce(column.cast(pl.Int64, strict=False) // scale, fraction)


def _iso_seconds(column: pl.Expr) -> pl.Expr:
    with_zone = column.str.to_datetime("%+", strict=False, time_unit="us", time_zone="UTC").dt.epoch("s")
    naive = [column.str.to_datetime(f, strict=False, time_unit="us").dt.epoch("s") for f in ISO]
    return pl.coalesce(with_zone, *naive).cast(pl.Int64)


def _type_position(log: TypedTable, dtype: pl.DataType) -> None:
    if not (dtype.is_numeric() or _is_text(dtype)):
        log.faults.append(("position", None, f"is {dtype}, expected integers"))
        return
    plain = _text("position").str.strip_chars() if _is_text(dtype) else pl.col("position")
    position = plain.cast(pl.Int64, strict=False)
    _add_presence(log, "position", position, "is not an integer")
    if dtype.is_float():
        broken = (pl.col("position") != position).fill_null(False)
        log.rules.append(Rule("position", broken, "is not an integer"))
    log.typed["ts"] = position


def _missing(table: TypedTable, column: str) -> bool:
    """Whether the table lacks a needed column; this is noted as a fault."""
    schema = table.raw.schema()
    if column not in schema:
        reason = f"is missing (found: {', '.join(schema)}); name it under [columns] in dataset.toml"
        table.faults.append((column, None, reason))
    return column not in schema


def _add_presence(table: TypedTable, column: str, typed: pl.Expr, reason: str) -> None:
    """Two rules: a value must be there, and it must have survived its cast."""
    absent = _absent(table, column)
    table.rules.append(Rule(column, absent, "is missing"))
    table.rules.append(Rule(column, typed.is_null() & ~absent, reason))


def _absent(table: TypedTable, column: str) -> pl.Expr:
    if _is_text(table.raw.schema()[column]):
        return _text(column).str.strip_chars().fill_null("") == ""
    return pl.col(column).is_null()


def _is_text(dtype: pl.DataType) -> bool:
    return isinstance(dtype, pl.String | pl.Categorical | pl.Enum | pl.Null)


def _text(column: str) -> pl.Expr:
    return pl.col(column).cast(pl.String)
