"""The rows before any effect is looked at: the columns that the plan reads, and what is wrong with them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import polars as pl

from recsys.errors import DataError
from recsys.experiment.design import Experiment
from recsys.experiment.metrics import DAY, EXPOSED

# Of the rows, beside the plan's own columns: the place of a row's variant in the plan, null for a stranger's.
CODE = "|code"
_EARLY, _KIND, _ROWS = "|early", "|kind", "|rows"
# What may become of a row; the first that holds.
_KINDS = ("nameless", "outside", "early", "stranger", "counts")
_COUNTS = _KINDS.index("counts")
# Above this a sum of whole numbers might not fit in 32 bits.
_NARROW = 2**31 - 1


@dataclass(frozen=True)
class Survey:
    """What there is.

    rows      : all that there are
    outside   : before start or after end; early: before the unit's exposure; nameless: without a unit, a variant or a
                time; strangers: by variant, of those that the plan does not have. None of these count
    missing   : by column, values that are null or NaN; negative: below zero; both among the rows that count
    units     : about how many there are; days: from the first row's to the last's, None without a time; last: of these
    tidy      : every row counts as it is, without a gap, and sums fit: rows need nothing done to them
    """

    rows: int
    outside: int
    early: int
    nameless: int
    strangers: Mapping[str, int]
    missing: Mapping[str, int]
    negative: Mapping[str, int]
    units: int
    days: int | None
    last: date | None = None
    tidy: bool = False


def rows_of(data: pl.LazyFrame, plan: Experiment) -> pl.LazyFrame:
    """The columns that the plan reads: variants and labels as text, numbers as they are, days of times; and CODE.

    Errors: `DataError` naming a column that is missing, holds no numbers or no times.
    """
    try:
        schema = data.collect_schema()
    except pl.exceptions.PolarsError as error:
        raise DataError(f"the data cannot be read ({str(error).splitlines()[0]})") from error
    times = [column for column in (plan.time, plan.exposed) if column]
    needed = {plan.unit: "unit", plan.variant: "variant", **dict.fromkeys(times, "time")}
    numbers = {column: f"metric '{metric.name}'" for metric in plan.metrics for column in metric.columns}
    labels = {column: f"metric '{metric.name}'" for metric in plan.metrics for column in metric.labels} | {
        column: what for what, columns in plan.labels.items() for column in columns
    }
    for column, whose in (needed | numbers | labels).items():
        if column not in schema:
            raise DataError(f"no column '{column}' ({whose}) in the data; there are {', '.join(list(schema)[:20])}")
    for column, whose in numbers.items():
        if not (schema[column].is_numeric() or schema[column] == pl.Boolean):
            raise DataError(f"column '{column}' ({whose}) holds {schema[column]}, not numbers")
        if column in labels:
            raise DataError(f"column '{column}' cannot be both a number ({whose}) and a label ({labels[column]})")
    for column in times:
        if not isinstance(schema[column], pl.Datetime | pl.Date):
            raise DataError(f"column '{column}' (time) holds {schema[column]}, not dates or times with one zone")
    if plan.exposed and plan.time and schema[plan.time] != schema[plan.exposed]:
        raise DataError(
            f"columns '{plan.time}' ({schema[plan.time]}) and '{plan.exposed}' ({schema[plan.exposed]}) must be times "
            "of one kind and zone"
        )
    return data.select(
        plan.unit,
        pl.col(plan.variant).cast(pl.String),
        pl.col(plan.variant).cast(pl.String).cast(pl.Enum(list(plan.shares)), strict=False).to_physical().alias(CODE),
        *_times(plan),
        *(_number(column, schema[column]) for column in numbers if column not in needed),
        *(pl.col(column).cast(pl.String) for column in labels if column not in needed),
    )


def _number(column: str, kind: pl.DataType) -> pl.Expr:
    plain = isinstance(kind, pl.Float64 | pl.Int8 | pl.Int16 | pl.Int32 | pl.Int64)
    whole = isinstance(kind, pl.Boolean | pl.UInt8 | pl.UInt16 | pl.UInt32)
    return pl.col(column) if plain else pl.col(column).cast(pl.Int64 if whole else pl.Float64)


def _times(plan: Experiment) -> list[pl.Expr]:
    if not plan.time:
        return []
    first = plan.exposed or plan.time
    early = [(pl.col(plan.time) < pl.col(plan.exposed)).alias(_EARLY)] if plan.exposed else []
    # The day where the time's zone is, as people there have it.
    return [pl.col(plan.time).dt.date().alias(DAY), pl.col(first).dt.date().alias(EXPOSED), *early]


def _kind(plan: Experiment) -> pl.Expr:
    """The place in _KINDS of what becomes of a row."""
    needed = [plan.unit, plan.variant, *([DAY, EXPOSED] if plan.time else [])]
    day = pl.col(DAY)
    holds = {
        "nameless": pl.any_horizontal(pl.col(column).is_null() for column in needed),
        **({"outside": day.lt(plan.start or day) | day.gt(plan.end or day)} if plan.time else {}),
        **({"early": pl.col(_EARLY)} if plan.exposed else {}),
        "stranger": pl.col(CODE).is_null(),
    }
    kinds = [pl.when(own).then(pl.lit(_KINDS.index(name), pl.Int8)) for name, own in holds.items()]
    return pl.coalesce(*kinds, pl.lit(_COUNTS, pl.Int8))


def _numbers(rows: pl.LazyFrame, plan: Experiment) -> dict[str, pl.DataType]:
    schema = rows.collect_schema()
    own = dict.fromkeys(column for metric in plan.metrics for column in metric.columns)
    return {column: schema[column] for column in own if column not in (plan.unit, plan.variant)}


def asked(rows: pl.LazyFrame, plan: Experiment) -> list[pl.LazyFrame]:
    """What `Survey` is made of: how many rows there are by kind and variant; and, of all rows, gaps and extremes of the
    numbers, which are the survey's where all rows count."""
    dates = [pl.col(DAY).min().alias("|from"), pl.col(DAY).max().alias("|to")] if plan.time else []
    return [
        rows.group_by(_kind(plan).alias(_KIND), CODE).agg(pl.len().alias(_ROWS), *dates),
        rows.select(_numbers_asked(rows, plan)),
    ]


def _numbers_asked(rows: pl.LazyFrame, plan: Experiment) -> list[pl.Expr]:
    numbers = _numbers(rows, plan)
    return [
        pl.len().alias(_ROWS),
        *(pl.col(column).null_count().alias(f"null {column}") for column in numbers),
        *(pl.col(c).is_nan().sum().alias(f"nan {c}") for c, kind in numbers.items() if kind.is_float()),
        *(pl.col(column).min().alias(f"least {column}") for column in numbers),
        *(pl.col(column).max().alias(f"most {column}") for column in numbers),
    ]


def told(
    found: Sequence[pl.DataFrame],
    rows: pl.LazyFrame,
    plan: Experiment,
    units: int,
    variants: Sequence[str] | None = None,
) -> Survey:
    """What `asked` found. units : about how many there are; variants : that must be there; all of the plan's.

    Errors: `DataError` for no rows that count, or a variant of the plan that none of them has.
    """
    kinds, numbers_found = found
    by_kind = {name: kinds.filter(pl.col(_KIND) == place) for place, name in enumerate(_KINDS)}
    counts = by_kind["counts"]
    n = {name: int(own[_ROWS].sum()) for name, own in by_kind.items()}
    for name in variants or plan.shares:
        if list(plan.shares).index(name) not in counts[CODE]:
            names = rows.select(pl.col(plan.variant).drop_nulls().unique()).collect(engine="streaming").to_series()
            there = ", ".join(sorted(names)) or "none"
            raise DataError(
                f"no rows of variant '{name}' in column '{plan.variant}'"
                + (f" between {plan.start} and {plan.end}" if plan.start or plan.end else "")
                + f"; the variants there are {there}"
                + (f"; {n['outside']} rows lie outside these days" if n["outside"] else "")
            )
    numbers = _numbers(rows, plan)
    strangers = {}
    if by_kind["stranger"].height:
        by_name = rows.filter(_kind(plan) == _KINDS.index("stranger")).group_by(plan.variant).len()
        strangers = dict(by_name.sort(plan.variant).collect(engine="streaming").iter_rows())
    everyone = n["counts"] == sum(n.values())
    if not everyone:
        asking = _rows_that_count(rows, plan).select(_numbers_asked(rows, plan))
        numbers_found = asking.collect(engine="streaming")
    of = numbers_found.row(0, named=True)
    for column in numbers:
        if any(isinstance(x := of[f"{end} {column}"], float) and math.isinf(x) for end in ("least", "most")):
            raise DataError(f"column '{column}' holds an infinite value; set it to a number, or leave it empty")
    for metric in plan.metrics:
        rank = getattr(metric, "rank", None)
        if rank and of[f"least {rank}"] is not None and of[f"least {rank}"] < 1:
            raise DataError(f"column '{rank}' (metric '{metric.name}') holds {of[f'least {rank}']:g}; ranks are from 1")
    missing = {c: of[f"null {c}"] + of.get(f"nan {c}", 0) for c in numbers}
    below = [c for c in numbers if (of[f"least {c}"] or 0) < 0]
    negative = {}
    if below:
        sums = _rows_that_count(rows, plan).select((pl.col(c) < 0).sum() for c in below).collect(engine="streaming")
        negative = {c: int(sums[c][0]) for c in below}
    narrow = [c for c, kind in numbers.items() if isinstance(kind, pl.Int32 | pl.Int64)]
    widest = max((abs(of[f"{end} {c}"] or 0) for c in narrow for end in ("least", "most")), default=0)
    first: Any = counts["|from"].min() if plan.time else None
    last: Any = counts["|to"].max() if plan.time else None
    missing = {column: gaps for column, gaps in missing.items() if gaps}
    return Survey(
        rows=sum(n.values()),
        outside=n["outside"],
        early=n["early"],
        nameless=n["nameless"],
        strangers=strangers,
        missing=missing,
        negative=negative,
        units=units,
        days=(last - first).days + 1 if plan.time else None,
        last=last,
        tidy=not missing and everyone and widest * n["counts"] <= _NARROW,
    )


def kept(rows: pl.LazyFrame, plan: Experiment, found: Survey) -> pl.LazyFrame:
    """The rows that count, with numbers as floats and NaN as null."""
    if found.tidy:
        return rows
    numbers = _numbers(rows, plan)
    return _rows_that_count(rows, plan).with_columns(pl.col(c).cast(pl.Float64).fill_nan(None) for c in numbers)


def _rows_that_count(rows: pl.LazyFrame, plan: Experiment) -> pl.LazyFrame:
    return rows.filter(_kind(plan) == _COUNTS)
