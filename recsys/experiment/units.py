"""From rows to units: one streaming pass that totals each unit's rows, and counts of what is wrong with them.

Units are taken in parts by the hash of their id, so that a part fits in memory, however many there are. The moments of
parts add up (`moments`).
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from recsys.errors import DataError
from recsys.experiment.design import Experiment
from recsys.experiment.effects import Estimate
from recsys.experiment.metrics import Mean, Proportion, Quantile, Ratio, Total, quantile_estimate
from recsys.experiment.moments import Floats, Moments

# Totals that are held at once, over all units of a part: half a gigabyte.
CELLS = 60_000_000
# Names of a units' frame beside the totals.
VARIANT, OTHER, ROWS, FIRST = "|variant", "|other", "|rows", "|first"

Linear = Mean | Proportion | Ratio


@dataclass(frozen=True)
class Survey:
    """The rows before any effect is looked at.

    rows      : all that there are
    outside   : before start or after end; nameless: without a unit, a variant or a time; strangers: by variant, of
                those that the plan does not have. None of these count
    missing   : by column, values that are null or NaN; negative: below zero; both among the rows that count
    units     : about how many there are; days: from the first exposure's to the last's, None without a time
    """

    rows: int
    outside: int
    nameless: int
    strangers: Mapping[str, int]
    missing: Mapping[str, int]
    negative: Mapping[str, int]
    units: int
    days: int | None


def rows_of(data: pl.LazyFrame, plan: Experiment) -> pl.LazyFrame:
    """The columns that the plan reads: variants as text, numbers as floats, NaN as null.

    Errors: `DataError` naming a column that is missing, holds no numbers or no times.
    """
    schema = data.collect_schema()
    needed = {plan.unit: "unit", plan.variant: "variant", **({plan.time: "time"} if plan.time else {})}
    numbers = {column: f"metric '{metric.name}'" for metric in plan.metrics for column in metric.columns}
    for column, whose in (needed | numbers).items():
        if column not in schema:
            raise DataError(f"no column '{column}' ({whose}) in the data; there are {', '.join(list(schema)[:20])}")
    for column, whose in numbers.items():
        if not (schema[column].is_numeric() or schema[column] == pl.Boolean):
            raise DataError(f"column '{column}' ({whose}) holds {schema[column]}, not numbers")
    if plan.time and not isinstance(schema[plan.time], pl.Datetime | pl.Date):
        raise DataError(f"column '{plan.time}' (time) holds {schema[plan.time]}, not dates or times with one zone")
    return data.select(
        plan.unit,
        pl.col(plan.variant).cast(pl.String),
        *([pl.col(plan.time).cast(pl.Date)] if plan.time else []),
        *(pl.col(column).cast(pl.Float64).fill_nan(None) for column in numbers if column not in needed),
    )


def survey(rows: pl.LazyFrame, plan: Experiment, variants: Sequence[str] | None = None) -> tuple[pl.LazyFrame, Survey]:
    """The rows that count, and what was found among all of them. variants : that must be there; all of the plan's.

    Errors: `DataError` for no rows that count, or a variant of the plan that none of them has.
    """
    needed = [plan.unit, plan.variant, *([plan.time] if plan.time else [])]
    numbers = [column for column in rows.collect_schema() if column not in needed]
    nameless = pl.any_horizontal(pl.col(column).is_null() for column in needed)
    outside = pl.lit(False)
    if plan.time:
        outside = pl.col(plan.time).lt(plan.start or pl.col(plan.time)) | pl.col(plan.time).gt(
            plan.end or pl.col(plan.time)
        )
    stranger = ~pl.col(plan.variant).is_in(list(plan.shares))
    kind = (
        pl.when(nameless)
        .then(pl.lit("nameless"))
        .when(outside)
        .then(pl.lit("outside"))
        .when(stranger)
        .then(pl.lit("stranger"))
        .otherwise(pl.lit("counts"))
    )
    dates = [pl.col(plan.time).min().alias(FIRST), pl.col(plan.time).max().alias("|last")] if plan.time else []
    found = (
        rows.group_by(kind.alias("|kind"), plan.variant)
        .agg(
            pl.len().alias(ROWS),
            pl.col(plan.unit).approx_n_unique().alias("|units"),
            *(pl.col(column).is_null().sum().alias(f"missing {column}") for column in numbers),
            *(pl.col(column).lt(0).sum().alias(f"negative {column}") for column in numbers),
            *dates,
        )
        .collect(engine="streaming")
    )
    by_kind = {name: found.filter(pl.col("|kind") == name) for name in ("nameless", "outside", "stranger", "counts")}
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

    days = (counts["|last"].max() - counts[FIRST].min()).days + 1 if plan.time else None  # type: ignore[operator, union-attr]
    return rows.filter(kind == "counts"), Survey(
        rows=int(found[ROWS].sum()),
        outside=int(by_kind["outside"][ROWS].sum()),
        nameless=int(by_kind["nameless"][ROWS].sum()),
        strangers=dict(by_kind["stranger"].select(plan.variant, ROWS).iter_rows()),
        missing=summed("missing"),
        negative=summed("negative"),
        units=int(counts["|units"].sum()),
        days=days,
    )


@dataclass(frozen=True)
class Units:
    """Units' totals, in parts: frames with VARIANT, ROWS, FIRST (day of the first exposure, where the plan has a time)
    and a column for each `Total`, by its name. Units that were in more than one variant are not among them.

    mixed : the ids of those
    """

    parts: Sequence[pl.LazyFrame]
    mixed: pl.Series

    def frames(self, columns: Sequence[str] | None = None) -> Iterator[pl.DataFrame]:
        """One part after the other."""
        for part in self.parts:
            yield (part.select(columns) if columns else part).collect()

    def counts(self) -> dict[str, int]:
        """Units by variant."""
        frame = pl.concat([f.group_by(VARIANT).len() for f in self.frames([VARIANT])])
        return {str(name): int(n) for name, n in frame.group_by(VARIANT).agg(pl.col("len").sum()).iter_rows()}

    def column(self, name: str) -> pl.Series:
        """Of all units, without what is missing."""
        return pl.concat([frame.to_series() for frame in self.frames([name])]).drop_nulls()


@contextmanager
def units_of(rows: pl.LazyFrame, plan: Experiment, found: Survey, cells: int = CELLS) -> Iterator[Units]:
    """Total the rows of each unit. More units than `cells` allows are kept in files until this context ends."""
    totals = totals_of(plan)
    aggregates = [
        pl.col(plan.variant).min().alias(VARIANT),
        pl.col(plan.variant).max().alias(OTHER),
        pl.len().alias(ROWS),
        *([pl.col(plan.time).min().alias(FIRST)] if plan.time else []),
        *(_expression(total, gaps=total.column in found.missing) for total in totals),
    ]
    parts = max(1, -(-found.units * (len(aggregates) + 1) // cells))
    frames, mixed = [], []
    with tempfile.TemporaryDirectory(prefix="recsys-units-") as folder:
        for part in range(parts):
            own = rows if parts == 1 else rows.filter(pl.col(plan.unit).hash(0) % parts == part)
            frame = own.group_by(plan.unit).agg(aggregates).collect(engine="streaming")
            one = frame[VARIANT] == frame[OTHER]
            mixed.append(frame.filter(~one)[plan.unit])
            frame = frame.filter(one).drop(OTHER)
            if parts > 1:
                frame.write_parquet(Path(folder) / f"{part}.parquet")
            frames.append(frame.lazy() if parts == 1 else pl.scan_parquet(Path(folder) / f"{part}.parquet"))
            del frame
        yield Units(frames, pl.concat(mixed))


def totals_of(plan: Experiment) -> list[Total]:
    """All that the plan's metrics need, each once."""
    return list(
        dict.fromkeys(total for metric in plan.metrics if not isinstance(metric, Quantile) for total in metric.totals)
    )


def _expression(total: Total, *, gaps: bool) -> pl.Expr:
    column = pl.col(total.column)
    found = {"sum": column.sum(), "any": column.max(), "mean": column.mean()}[total.how]
    if total.how == "sum" and gaps:  # a sum of nothing but gaps is not known, and not zero
        found = pl.when(column.count() > 0).then(found)
    return found.alias(str(total))


def moments_of(units: Units, metric: Linear, names: Sequence[str]) -> tuple[dict[str, Moments], int, int]:
    """Of the metric's totals over the units of each variant; how many units are left out since a value is missing; how
    many got the mean of all for a covariate that is.

    Errors: `DataError` for a proportion's value that is neither 0 nor 1.
    """
    found = {name: Moments.none(len(metric.totals)) for name in names}
    left_out = filled = 0
    for values, without, lacking in _values(units, metric, names):
        left_out, filled = left_out + without, filled + lacking
        found = {name: found[name] + Moments.of(values[name]) for name in names}
    return found, left_out, filled


def values_of(units: Units, metric: Linear, name: str) -> Floats:
    """(units, totals) of a variant. Errors: as of `moments_of`."""
    return np.concatenate([values[name] for values, _, _ in _values(units, metric, [name])])


def _values(units: Units, metric: Linear, names: Sequence[str]) -> Iterator[tuple[dict[str, Floats], int, int]]:
    """By part: (units, totals) of each variant, how many units are left out, and how many lack a covariate."""
    own = [str(total) for total in metric.totals]
    measured, covariates = own[: len(metric.values)], own[len(metric.values) :]
    if isinstance(metric, Proportion):
        odd = units.column(own[0]).unique()
        if len(odd := odd.filter(~odd.is_in([0.0, 1.0]))):
            raise DataError(
                f"column '{metric.column}' (proportion '{metric.name}') holds {odd[0]:g}; only 0 and 1 may be there"
            )
    caps = {n: units.column(n).quantile(metric.winsorize, "linear") for n in measured} if metric.winsorize else {}
    means = {name: units.column(name).mean() for name in covariates}
    for frame in units.frames([VARIANT, *dict.fromkeys(own)]):
        known = frame.drop_nulls(measured)
        lacking = (
            int(known.select(pl.any_horizontal(pl.col(n).is_null() for n in covariates).sum()).item()) if means else 0
        )
        ready = known.with_columns(
            *(pl.col(name).clip(upper_bound=cap) for name, cap in caps.items()),
            *(pl.col(name).fill_null(mean if mean is not None else 0.0) for name, mean in means.items()),
        )
        values = {name: ready.filter(pl.col(VARIANT) == name).select(own).to_numpy() for name in names}
        yield values, len(frame) - len(known), lacking


def quantiles_of(rows: pl.LazyFrame, plan: Experiment, metric: Quantile, mixed: pl.Series) -> dict[str, Estimate]:
    """The metric's estimate in each variant, over rows of units that were in one variant only."""
    if len(mixed):
        rows = rows.filter(~pl.col(plan.unit).is_in(mixed.implode()))
    found = {}
    for name in plan.shares:
        own = rows.filter((pl.col(plan.variant) == name) & pl.col(metric.column).is_not_null())
        values = own.select(metric.column).collect(engine="streaming").to_series().sort().to_numpy()
        edge = float(np.quantile(values, metric.q)) if len(values) else np.nan
        below = own.group_by(plan.unit).agg((pl.col(metric.column) <= edge).sum().alias("below"), pl.len().alias("of"))
        counts = below.select("below", "of").collect(engine="streaming").to_numpy().astype(np.float64)
        found[name] = quantile_estimate(metric.q, values, Moments.of(counts))
    return found
