"""The rows before any effect is looked at: the columns that the plan reads, and what is wrong with them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import polars as pl

from recsys.errors import DataError
from recsys.experiment.design import Experiment
from recsys.experiment.metrics import DAY, EXPOSED

_EARLY, _KIND, _ROWS, _UNITS = "|early", "|kind", "|rows", "|units"
# What may become of a row.
_KINDS = ("nameless", "outside", "early", "stranger", "counts")


@dataclass(frozen=True)
class Survey:
    """What there is.

    rows      : all that there are
    outside   : before start or after end; early: before the unit's exposure; nameless: without a unit, a variant or a
                time; strangers: by variant, of those that the plan does not have. None of these count
    missing   : by column, values that are null or NaN; negative: below zero; both among the rows that count
    units     : about how many there are; days: from the first row's to the last's, None without a time; last: of these
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


def rows_of(data: pl.LazyFrame, plan: Experiment) -> pl.LazyFrame:
    """The columns that the plan reads: variants and labels as text, numbers as floats, NaN as null, days of times.

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
        *_times(plan),
        *(pl.col(column).cast(pl.Float64).fill_nan(None) for column in numbers if column not in needed),
        *(pl.col(column).cast(pl.String) for column in labels if column not in needed),
    )


def _times(plan: Experiment) -> list[pl.Expr]:
    if not plan.time:
        return []
    first = plan.exposed or plan.time
    early = [(pl.col(plan.time) < pl.col(plan.exposed)).alias(_EARLY)] if plan.exposed else []
    return [pl.col(plan.time).cast(pl.Date).alias(DAY), pl.col(first).cast(pl.Date).alias(EXPOSED), *early]


def survey(rows: pl.LazyFrame, plan: Experiment, variants: Sequence[str] | None = None) -> tuple[pl.LazyFrame, Survey]:
    """The rows that count, and what was found among all of them. variants : that must be there; all of the plan's.

    Errors: `DataError` for no rows that count, or a variant of the plan that none of them has.
    """
    needed = [plan.unit, plan.variant, *([DAY, EXPOSED] if plan.time else [])]
    numbers = list(dict.fromkeys(column for metric in plan.metrics for column in metric.columns))
    numbers = [column for column in numbers if column not in needed]
    day = pl.col(DAY)
    first_that_holds = [
        ("nameless", pl.any_horizontal(pl.col(column).is_null() for column in needed)),
        *([("outside", day.lt(plan.start or day) | day.gt(plan.end or day))] if plan.time else []),
        *([("early", pl.col(_EARLY))] if plan.exposed else []),
        ("stranger", ~pl.col(plan.variant).is_in(list(plan.shares))),
        ("counts", pl.lit(True)),
    ]
    kind = pl.coalesce(pl.when(holds).then(pl.lit(name)) for name, holds in first_that_holds)
    dates = [pl.col(DAY).min().alias("|from"), pl.col(DAY).max().alias("|to")] if plan.time else []
    try:
        found = (
            rows.group_by(kind.alias(_KIND), plan.variant)
            .agg(
                pl.len().alias(_ROWS),
                pl.col(plan.unit).approx_n_unique().alias(_UNITS),
                *(pl.col(column).is_null().sum().alias(f"missing {column}") for column in numbers),
                *(pl.col(column).lt(0).sum().alias(f"negative {column}") for column in numbers),
                *dates,
            )
            .collect(engine="streaming")
        )
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"the data cannot be read ({str(error).splitlines()[0]})") from error
    by_kind = {name: found.filter(pl.col(_KIND) == name) for name in _KINDS}
    counts = by_kind["counts"]
    for name in variants or plan.shares:
        if name not in counts[plan.variant]:
            there = ", ".join(sorted(str(v) for v in found[plan.variant].drop_nulls().unique())) or "none"
            raise DataError(
                f"no rows of variant '{name}' in column '{plan.variant}'"
                + (f" between {plan.start} and {plan.end}" if plan.start or plan.end else "")
                + f"; the variants there are {there}"
            )

    def summed(what: str) -> dict[str, int]:
        sums = {column: int(counts[f"{what} {column}"].sum()) for column in numbers}
        return {column: n for column, n in sums.items() if n}

    first: Any = counts["|from"].min() if plan.time else None
    last: Any = counts["|to"].max() if plan.time else None
    return rows.filter(kind == "counts"), Survey(
        rows=int(found[_ROWS].sum()),
        outside=int(by_kind["outside"][_ROWS].sum()),
        early=int(by_kind["early"][_ROWS].sum()),
        nameless=int(by_kind["nameless"][_ROWS].sum()),
        strangers=dict(by_kind["stranger"].select(plan.variant, _ROWS).iter_rows()),
        missing=summed("missing"),
        negative=summed("negative"),
        units=int(counts[_UNITS].sum()),
        days=(last - first).days + 1 if plan.time else None,
        last=last,
    )
